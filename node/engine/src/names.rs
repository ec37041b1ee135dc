//! Names of containers: Docker's rules, and generated ones from our own words.

use crate::error::{EngineError, Result};
use rand::RngExt as _;

/// Most characters of a name.
const NAME_CHARS_MAX: usize = 253;

const ADJECTIVES: [&str; 48] = [
    "agile", "amber", "azure", "bold", "brave", "bright", "brisk", "calm", "clever", "coral",
    "curious", "deep", "eager", "fair", "fleet", "free", "gentle", "glad", "golden", "happy",
    "hardy", "jolly", "keen", "kind", "lively", "loyal", "lucid", "merry", "mild", "neat", "noble",
    "patient", "proud", "quick", "quiet", "rapid", "ready", "silver", "smart", "steady", "sunny",
    "swift", "tidal", "tranquil", "vivid", "warm", "wise", "witty",
];

const NOUNS: [&str; 48] = [
    "albacore", "anchovy", "barbel", "bass", "bream", "capelin", "carp", "char", "cod", "dace",
    "darter", "eel", "flounder", "gar", "goby", "grayling", "grouper", "gudgeon", "haddock",
    "hake", "halibut", "herring", "lamprey", "ling", "loach", "mackerel", "minnow", "mullet",
    "perch", "pike", "pilchard", "plaice", "pollock", "roach", "ruffe", "salmon", "sardine",
    "shad", "skate", "smelt", "sole", "sprat", "sturgeon", "tench", "trout", "tuna", "turbot",
    "wrasse",
];

/// Checks a name that a user gave; a leading slash is taken off.
pub(crate) fn check(name: &str) -> Result<&str> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let first = |c: char| c.is_ascii_alphanumeric();
    let rest = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    let mut chars = bare.chars();
    let good = chars.next().is_some_and(first)
        && bare.len() >= 2
        && bare.len() <= NAME_CHARS_MAX
        && chars.all(rest);
    if good {
        Ok(bare)
    } else {
        Err(EngineError::BadName {
            name: name.to_owned(),
        })
    }
}

/// A name that is probably free; from the third `attempt` on it carries a number.
pub(crate) fn generate(attempt: u32) -> String {
    let mut rng = rand::rng();
    let adjective = ADJECTIVES[rng.random_range(0..ADJECTIVES.len())];
    let noun = NOUNS[rng.random_range(0..NOUNS.len())];
    if attempt < 2 {
        format!("{adjective}_{noun}")
    } else {
        format!("{adjective}_{noun}{}", rng.random_range(0..1_000_000u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dockers_rule() {
        for good in ["ab", "/web", "a.b-c_d", "0x", "web.1.abc"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "/", "-ab", ".ab", "a b", "ä1", "a/b", "//ab"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        for attempt in 0..4 {
            assert!(check(&generate(attempt)).is_ok());
        }
    }
}
