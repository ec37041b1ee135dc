//! The words of the `STATUS` column.

use crate::info::{ContainerState, ContainerStatus, HealthStatus};
use shoal_model::Timestamp;
use std::time::Duration;

pub(crate) fn status_text(state: &ContainerState, now: Timestamp) -> String {
    let ago = |at: Option<Timestamp>| at.map(|at| human_duration(now.since(at)));
    let up = ago(state.started_at).unwrap_or_default();
    match state.status {
        ContainerStatus::Created => "Created".to_owned(),
        ContainerStatus::Removing => "Removal In Progress".to_owned(),
        ContainerStatus::Dead => "Dead".to_owned(),
        ContainerStatus::Paused => format!("Up {up} (Paused)"),
        ContainerStatus::Restarting => format!(
            "Restarting ({}) {} ago",
            state.exit_code,
            ago(state.finished_at).unwrap_or_default()
        ),
        ContainerStatus::Exited => match ago(state.finished_at) {
            Some(ago) => format!("Exited ({}) {ago} ago", state.exit_code),
            None => format!("Exited ({})", state.exit_code),
        },
        ContainerStatus::Running => match state.health.as_ref().map(|health| health.status) {
            None => format!("Up {up}"),
            Some(HealthStatus::Starting) => format!("Up {up} (health: starting)"),
            Some(status) => format!("Up {up} ({})", status.as_str()),
        },
    }
}

/// Docker's wording of a span of time.
fn human_duration(span: Duration) -> String {
    let seconds = span.as_secs();
    let minutes = seconds / 60;
    let hours = (span.as_secs_f64() / 3600.0).round() as u64;
    match () {
        () if seconds < 1 => "Less than a second".to_owned(),
        () if seconds == 1 => "1 second".to_owned(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".to_owned(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".to_owned(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::human_duration;
    use std::time::Duration;

    #[test]
    fn spans_are_worded_as_docker_words_them() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (240, "4 minutes"),
            (3_600, "About an hour"),
            (7_300, "2 hours"),
            (3 * 24 * 3600, "3 days"),
            (15 * 24 * 3600, "2 weeks"),
            (70 * 24 * 3600, "2 months"),
            (800 * 24 * 3600, "2 years"),
        ] {
            assert_eq!(human_duration(Duration::from_secs(seconds)), text);
        }
    }
}
