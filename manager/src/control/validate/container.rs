//! Container specs.

use super::{Invalid, duration, ensure, labels, list_bound, mounts, names, no_nul};
use shoal_model::ContainerSpec;
use shoal_model::spec::{DnsConfig, Healthcheck, Ulimit};
use std::net::IpAddr;
use std::ops::RangeInclusive;

const FIELD: &str = "TaskTemplate.ContainerSpec";

/// Most characters of a host name, see sethostname(2).
const HOSTNAME_CHARS_MAX: usize = 63;

/// What the kernel takes, see proc(5).
const OOM_SCORE_ADJ: RangeInclusive<i64> = -1000..=1000;

/// Highest signal number on Linux.
const SIGNAL_MAX: u8 = 64;

/// Shortest time between two health probes, in nanoseconds: 1 ms.
const PROBE_NS_MIN: u64 = 1_000_000;

const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

pub(super) fn container(spec: &ContainerSpec) -> Result<(), Invalid> {
    names::image_reference(&spec.image)?;
    labels(&field("Labels"), &spec.labels)?;
    let texts = [
        ("Command", &spec.command),
        ("Args", &spec.args),
        ("Groups", &spec.groups),
    ];
    for (name, list) in texts {
        list_bound(&field(name), list)?;
        list.iter()
            .try_for_each(|text| no_nul(&field(name), text))?;
    }
    for (name, text) in [("Dir", &spec.dir), ("User", &spec.user)] {
        no_nul(&field(name), text)?;
    }
    ensure(
        spec.dir.is_empty() || spec.dir.starts_with('/'),
        &field("Dir"),
        || {
            format!(
                "`{}` is not absolute: begin it with `/`",
                spec.dir.escape_debug()
            )
        },
    )?;
    env(&spec.env)?;
    hostname(&spec.hostname)?;
    mounts::mounts(&spec.mounts)?;
    stop_signal(&spec.stop_signal)?;
    duration(
        &field("StopGracePeriod"),
        spec.stop_grace_period_ns.unwrap_or(0),
    )?;
    spec.healthcheck.as_ref().map_or(Ok(()), healthcheck)?;
    hosts(&spec.hosts)?;
    dns(&spec.dns)?;
    sysctls(spec)?;
    capabilities("CapabilityAdd", &spec.cap_add)?;
    capabilities("CapabilityDrop", &spec.cap_drop)?;
    ulimits(&spec.ulimits)?;
    ensure(
        OOM_SCORE_ADJ.contains(&spec.oom_score_adj),
        &field("OomScoreAdj"),
        || format!("{}: -1000 to 1000 are allowed", spec.oom_score_adj),
    )
}

fn field(name: &str) -> String {
    format!("{FIELD}.{name}")
}

fn env(env: &[String]) -> Result<(), Invalid> {
    list_bound(&field("Env"), env)?;
    for entry in env {
        no_nul(&field("Env"), entry)?;
        // Docker keeps `KEY` without a value: it takes the variable away.
        ensure(
            !entry.is_empty() && !entry.starts_with('='),
            &field("Env"),
            || format!("`{}` has no name: give `KEY=VALUE`", entry.escape_debug()),
        )?;
    }
    Ok(())
}

fn hostname(name: &str) -> Result<(), Invalid> {
    let inner =
        |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'{' | b'}');
    let well_formed = name.bytes().all(inner) && !name.starts_with(['-', '.']);
    ensure(
        well_formed && name.len() <= HOSTNAME_CHARS_MAX,
        &field("Hostname"),
        || {
            format!(
                "`{}` is not a host name: use at most {HOSTNAME_CHARS_MAX} letters, digits, `-` and `.`",
                name.escape_debug()
            )
        },
    )?;
    ensure(!name.contains(['{', '}']), &field("Hostname"), || {
        format!("`{name}`: templates are not supported: give a plain name")
    })
}

fn stop_signal(signal: &str) -> Result<(), Invalid> {
    let number = signal
        .parse::<u8>()
        .is_ok_and(|number| (1..=SIGNAL_MAX).contains(&number));
    let word = signal.strip_prefix("SIG").unwrap_or(signal);
    let name = !word.is_empty()
        && word.starts_with(|first: char| first.is_ascii_uppercase())
        && word
            .bytes()
            .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-'));
    ensure(
        signal.is_empty() || number || name,
        &field("StopSignal"),
        || {
            format!(
                "`{}` is not a signal: use a name such as SIGTERM or a number from 1 to {SIGNAL_MAX}",
                signal.escape_debug()
            )
        },
    )
}

fn healthcheck(check: &Healthcheck) -> Result<(), Invalid> {
    let name = |part: &str| field(&format!("Healthcheck.{part}"));
    list_bound(&name("Test"), &check.test)?;
    let known = match check.test.split_first() {
        None => true,
        Some((kind, rest)) => match kind.as_str() {
            "NONE" => rest.is_empty(),
            "CMD" => !rest.is_empty(),
            "CMD-SHELL" => rest.len() == 1,
            _ => false,
        },
    };
    ensure(known, &name("Test"), || {
        format!(
            "{:?} is not a test: use [\"NONE\"], [\"CMD\", PROGRAM, ARGUMENT…] or [\"CMD-SHELL\", LINE]",
            check.test
        )
    })?;
    let times = [
        ("Interval", check.interval_ns),
        ("Timeout", check.timeout_ns),
        ("StartPeriod", check.start_period_ns),
        ("StartInterval", check.start_interval_ns),
    ];
    for (part, nanoseconds) in times {
        duration(&name(part), nanoseconds)?;
        ensure(
            nanoseconds == 0 || nanoseconds >= PROBE_NS_MIN,
            &name(part),
            || format!("{nanoseconds} ns is too short: at least 1 ms, or 0 for the default"),
        )?;
    }
    Ok(())
}

fn hosts(lines: &[String]) -> Result<(), Invalid> {
    list_bound(&field("Hosts"), lines)?;
    for line in lines {
        let mut words = line.split_ascii_whitespace();
        let address = words
            .next()
            .is_some_and(|word| word.parse::<IpAddr>().is_ok());
        ensure(
            address && words.next().is_some() && !line.contains(['\n', '\0']),
            &field("Hosts"),
            || format!("`{}` is not `ADDRESS NAME…`", line.escape_debug()),
        )?;
    }
    Ok(())
}

fn dns(config: &DnsConfig) -> Result<(), Invalid> {
    for server in &config.nameservers {
        ensure(
            server.parse::<IpAddr>().is_ok(),
            &field("DNSConfig.Nameservers"),
            || format!("`{}` is not an address", server.escape_debug()),
        )?;
    }
    for (name, list) in [("Search", &config.search), ("Options", &config.options)] {
        let name = field(&format!("DNSConfig.{name}"));
        list_bound(&name, list)?;
        for word in list {
            let plain = word.bytes().all(|byte| byte.is_ascii_graphic());
            ensure(plain && !word.is_empty(), &name, || {
                format!(
                    "`{}` has characters that a resolver does not read",
                    word.escape_debug()
                )
            })?;
        }
    }
    list_bound(&field("DNSConfig.Nameservers"), &config.nameservers)
}

fn sysctls(spec: &ContainerSpec) -> Result<(), Invalid> {
    for (key, value) in &spec.sysctls {
        no_nul(&field("Sysctls"), value)?;
        // What has no namespace of its own would change the machine.
        let own = key.starts_with("net.")
            || key.starts_with("fs.mqueue.")
            || key.starts_with("kernel.msg")
            || key.starts_with("kernel.sem")
            || key.starts_with("kernel.shm");
        ensure(own && !key.contains('/'), &field("Sysctls"), || {
            format!(
                "`{}` is not a setting of a container: use net.*, fs.mqueue.*, kernel.msg*, kernel.sem or kernel.shm*",
                key.escape_debug()
            )
        })?;
    }
    Ok(())
}

fn capabilities(name: &str, list: &[String]) -> Result<(), Invalid> {
    list_bound(&field(name), list)?;
    for capability in list {
        let word = capability.strip_prefix("CAP_").unwrap_or(capability);
        let plain = !word.is_empty() && word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        ensure(plain, &field(name), || {
            format!(
                "`{}` is not a capability: use a name such as CAP_NET_ADMIN, or ALL",
                capability.escape_debug()
            )
        })?;
    }
    Ok(())
}

fn ulimits(list: &[Ulimit]) -> Result<(), Invalid> {
    for limit in list {
        let name = limit.name.as_str();
        ensure(ULIMITS.contains(&name), &field("Ulimits"), || {
            format!(
                "`{}` is not a limit: use {}",
                name.escape_debug(),
                ULIMITS.join(", ")
            )
        })?;
        let (soft, hard) = (limit.soft, limit.hard);
        let order = soft >= -1 && hard >= -1 && (hard == -1 || (soft != -1 && soft <= hard));
        ensure(order, &field("Ulimits"), || {
            format!(
                "{name}={soft}:{hard}: the soft limit must not exceed the hard one; -1 is unlimited"
            )
        })?;
    }
    list_bound(&field("Ulimits"), list)
}
