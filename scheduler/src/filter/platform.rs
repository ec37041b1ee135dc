//! The image has a variant for the node's platform.

use super::{Filter, count};
use crate::constraint::architecture;
use crate::node::{NodeEntry, Seat};
use shoal_model::Node;
use shoal_model::spec::Platform;

pub(super) struct PlatformFilter<'a> {
    platforms: &'a [Platform],
}

impl<'a> PlatformFilter<'a> {
    pub(super) fn new(platforms: &'a [Platform]) -> Self {
        Self { platforms }
    }
}

/// Whether one of `platforms` is the node's; an empty list and empty fields match any.
pub fn platform_matches(platforms: &[Platform], node: &Node) -> bool {
    if platforms.is_empty() {
        return true;
    }
    let Some(description) = &node.description else {
        return false;
    };
    platforms.iter().any(|platform| {
        (platform.os.is_empty() || platform.os.eq_ignore_ascii_case(&description.os))
            && (platform.architecture.is_empty()
                || architecture(&platform.architecture) == architecture(&description.architecture))
    })
}

impl Filter for PlatformFilter<'_> {
    fn name(&self) -> &'static str {
        "platform"
    }

    fn admits(&self, seat: Seat<'_>) -> bool {
        let node = seat.node;
        match &node.node {
            Some(node) => platform_matches(self.platforms, node),
            None => self.platforms.is_empty(),
        }
    }

    fn explain(&self, refused: &[&NodeEntry]) -> (String, String) {
        let wanted = self
            .platforms
            .iter()
            .map(|p| format!("{}/{}", p.os, p.architecture))
            .collect::<Vec<_>>()
            .join(", ");
        (
            format!(
                "the image is for {wanted}; {} of another platform",
                match refused.len() {
                    1 => "1 node is".to_owned(),
                    n => format!("{} are", count(n)),
                }
            ),
            "use an image for the platform of these nodes, or add a node of the image's".to_owned(),
        )
    }
}
