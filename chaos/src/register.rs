//! What a client may find of one service after writes of which some have an unknown outcome.
//!
//! Updates name the version that they were made from, so that one that was overtaken can't take effect any more:
//! after an acknowledged write only that one and the unknown ones after it are possible.

use shoal_model::ServiceSpec;

/// The values that are possible, oldest first; `None`: the service does not exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Register {
    possible: Vec<Option<ServiceSpec>>,
    /// A removal was tried: it may still take effect, so that nothing else is written.
    leaving: bool,
}

impl Default for Register {
    fn default() -> Self {
        Self {
            possible: vec![None],
            leaving: false,
        }
    }
}

impl Register {
    /// A write was acknowledged.
    pub fn acknowledged(&mut self, value: Option<ServiceSpec>) {
        self.possible = vec![value];
    }

    /// A write may have taken effect, or may do so later.
    pub fn unknown(&mut self, value: Option<ServiceSpec>) {
        self.possible.push(value);
    }

    /// A removal is tried from now on.
    pub fn leave(&mut self) {
        self.leaving = true;
    }

    /// Whether a removal was tried.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Whether the service was made for sure and was not removed.
    pub fn is_present(&self) -> bool {
        !self.leaving && self.possible.iter().all(Option::is_some)
    }

    /// Whether nothing else than its absence is possible.
    pub fn is_gone(&self) -> bool {
        self.possible.iter().all(Option::is_none)
    }

    /// A linearizable read found `value`. False: that was impossible.
    pub fn read(&mut self, value: Option<&ServiceSpec>) -> bool {
        let Some(place) = self.place(value) else {
            return false;
        };
        self.possible.drain(..place);
        true
    }

    /// Whether `value` may be found.
    pub fn allows(&self, value: Option<&ServiceSpec>) -> bool {
        self.place(value).is_some()
    }

    fn place(&self, value: Option<&ServiceSpec>) -> Option<usize> {
        self.possible.iter().position(|one| one.as_ref() == value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str) -> Option<ServiceSpec> {
        Some(ServiceSpec {
            name: name.to_owned(),
            ..ServiceSpec::default()
        })
    }

    #[test]
    fn an_acknowledged_write_rules_out_what_was_before() {
        let mut register = Register::default();
        register.unknown(spec("a"));
        assert!(register.allows(None) && register.allows(spec("a").as_ref()));
        register.acknowledged(spec("b"));
        assert!(!register.allows(None) && !register.allows(spec("a").as_ref()));
        assert!(register.allows(spec("b").as_ref()) && register.is_present());
    }

    #[test]
    fn a_read_rules_out_what_is_older() {
        let mut register = Register::default();
        register.acknowledged(spec("a"));
        register.unknown(spec("b"));
        assert!(register.read(spec("a").as_ref()));
        assert!(register.read(spec("b").as_ref()));
        assert!(!register.read(spec("a").as_ref()), "a read went back");
    }
}
