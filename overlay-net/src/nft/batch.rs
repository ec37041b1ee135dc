//! Building the bytes of one nftables transaction.

use super::expr::AnonymousSet;
use super::rule::Rule;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_CREATE: u16 = 0x400;
const NLM_F_APPEND: u16 = 0x800;

const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

const MSG_NEWTABLE: u16 = 0;
const MSG_DELTABLE: u16 = 2;
const MSG_NEWCHAIN: u16 = 3;
const MSG_DELCHAIN: u16 = 5;
const MSG_NEWRULE: u16 = 6;
const MSG_DELRULE: u16 = 8;
const MSG_NEWSET: u16 = 9;
const MSG_DELSET: u16 = 11;
const MSG_NEWSETELEM: u16 = 12;
const MSG_DELSETELEM: u16 = 14;
const MSG_NEWOBJ: u16 = 18;

const NFT_SET_ANONYMOUS: u32 = 0x1;
const NFT_SET_CONSTANT: u32 = 0x2;
const NFT_SET_INTERVAL: u32 = 0x4;
const NFT_SET_MAP: u32 = 0x8;
const NFT_SET_TIMEOUT: u32 = 0x10;
const NFT_SET_EVAL: u32 = 0x20;

/// The type of values that are verdicts, `NFT_DATA_VERDICT`.
const TYPE_VERDICT: u32 = 0xffff_ff00;

/// Elements in one message: the attribute that holds them has a 16-bit length.
const ELEMENTS_PER_MESSAGE_MAX: usize = 300;

/// Attributes of a netlink message, appended one after the other.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Attrs(pub(super) Vec<u8>);

impl Attrs {
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        self.push(kind, value);
        self
    }

    /// A 32-bit number in network order, as nf_tables wants all its numbers.
    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A 64-bit number in network order.
    pub(crate) fn be64(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A string with its terminating zero.
    pub(crate) fn text(mut self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.push(kind, &bytes);
        self
    }

    pub(crate) fn nested(mut self, kind: u16, inner: &Attrs) -> Self {
        const NLA_F_NESTED: u16 = 0x8000;
        self.push(kind | NLA_F_NESTED, &inner.0);
        self
    }

    fn push(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// What a chain is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainKind {
    Filter,
    Nat,
    /// Routes a packet of this host again when a rule changed its mark.
    Route,
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ChainHook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

impl ChainHook {
    /// `enum nf_inet_hooks`.
    const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
            Self::Input => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// Type and length of the keys of a set, and of its values when it is a map. Types are those of nft's user space, so
/// that `nft list ruleset` prints them well.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SetKind {
    pub(crate) key_type: u32,
    pub(crate) key_bytes: u32,
    pub(crate) value: Option<(u32, u32)>,
}

/// What a set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SetDefinition {
    /// Type and length in bytes of the keys.
    pub(crate) key: (u32, u32),
    /// The values, in maps.
    pub(crate) value: SetValue,
    /// Keys are ranges.
    pub(crate) interval: bool,
    /// Rules add elements, which end so many milliseconds after they were last touched.
    pub(crate) learns_for_ms: Option<u64>,
    /// Most elements; `None`: no bound.
    pub(crate) size_max: Option<u32>,
}

impl SetDefinition {
    /// A set of single keys.
    pub(crate) const fn of(key: (u32, u32)) -> Self {
        Self {
            key,
            value: SetValue::None,
            interval: false,
            learns_for_ms: None,
            size_max: None,
        }
    }

    /// The same with values.
    pub(crate) const fn to(self, value: SetValue) -> Self {
        Self { value, ..self }
    }

    /// The same over ranges of keys.
    pub(crate) const fn ranges(self) -> Self {
        Self {
            interval: true,
            ..self
        }
    }

    fn attributes(self, attrs: Attrs, more_flags: u32) -> Attrs {
        let map = if self.value == SetValue::None {
            0
        } else {
            NFT_SET_MAP
        };
        let interval = if self.interval { NFT_SET_INTERVAL } else { 0 };
        let learns = match self.learns_for_ms {
            Some(_) => NFT_SET_TIMEOUT | NFT_SET_EVAL,
            None => 0,
        };
        let mut attrs = attrs
            .be32(3, map | interval | learns | more_flags)
            .be32(4, self.key.0)
            .be32(5, self.key.1);
        match self.value {
            SetValue::None => {}
            SetValue::Verdict => attrs = attrs.be32(6, TYPE_VERDICT),
            SetValue::Data(kind, bytes) => attrs = attrs.be32(6, kind).be32(7, bytes),
        }
        if let Some(size) = self.size_max {
            attrs = attrs.nested(9, &Attrs::default().be32(1, size));
        }
        if let Some(ms) = self.learns_for_ms {
            attrs = attrs.be64(11, ms);
        }
        attrs
    }
}

/// What the elements of a set carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SetValue {
    None,
    Verdict,
    /// Type and length in bytes.
    Data(u32, u32),
}

/// What an element of a map carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Data(Vec<u8>),
    Goto(String),
}

impl Value {
    fn attributes(&self) -> Attrs {
        match self {
            Self::Data(bytes) => Attrs::default().bytes(1, bytes),
            Self::Goto(chain) => Attrs::default().nested(2, &verdict_goto(chain)),
        }
    }
}

/// `goto CHAIN`.
pub(super) fn verdict_goto(chain: &str) -> Attrs {
    const NFT_GOTO: i32 = -4;
    Attrs::default()
        .bytes(1, &NFT_GOTO.to_be_bytes())
        .text(2, chain)
}

/// An element of a set: a key, or in interval sets a range from `key` to before `end` (`None`: to the last).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    pub(crate) end: Option<Vec<u8>>,
    pub(crate) value: Option<Value>,
}

impl Element {
    fn write(&self, list: Attrs) -> Attrs {
        const NFT_SET_ELEM_INTERVAL_END: u32 = 1;
        let mut element = Attrs::default().nested(1, &Attrs::default().bytes(1, &self.key));
        if let Some(value) = &self.value {
            element = element.nested(2, &value.attributes());
        }
        let list = list.nested(1, &element);
        match &self.end {
            Some(end) => {
                let end = Attrs::default()
                    .nested(1, &Attrs::default().bytes(1, end))
                    .be32(3, NFT_SET_ELEM_INTERVAL_END);
                list.nested(1, &end)
            }
            None => list,
        }
    }
}

/// One transaction.
pub(crate) struct Batch {
    family: u8,
    table: String,
    bytes: Vec<u8>,
    /// What each message does, in order, for error texts.
    steps: Vec<String>,
    next_set_id: u32,
    /// Where the header of the last message begins.
    last_message: Option<usize>,
}

impl Batch {
    pub(crate) fn new(family: u8, table: &str) -> Self {
        let mut batch = Self {
            family,
            table: table.to_owned(),
            bytes: Vec::with_capacity(4096),
            steps: Vec::new(),
            next_set_id: 1,
            last_message: None,
        };
        batch.frame(BATCH_BEGIN);
        batch
    }

    /// Makes the table if it is not there; harmless if it is.
    pub(crate) fn add_table(&mut self) {
        let attrs = Attrs::default().text(1, &self.table);
        self.message(MSG_NEWTABLE, NLM_F_CREATE, attrs, "add table".to_owned());
    }

    /// Removes the table with all that is in it.
    pub(crate) fn delete_table(&mut self) {
        let attrs = Attrs::default().text(1, &self.table);
        self.message(MSG_DELTABLE, 0, attrs, "delete table".to_owned());
    }

    pub(crate) fn add_chain(&mut self, name: &str, kind: ChainKind, hook: ChainHook, prio: i32) {
        let hook_attrs = Attrs::default()
            .be32(1, hook.number())
            .bytes(2, &prio.to_be_bytes());
        let kind = match kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
        };
        let attrs = Attrs::default()
            .text(1, &self.table)
            .text(3, name)
            .nested(4, &hook_attrs)
            .be32(5, 1) // policy: NF_ACCEPT
            .text(7, kind);
        self.message(
            MSG_NEWCHAIN,
            NLM_F_CREATE,
            attrs,
            format!("add chain `{name}`"),
        );
    }

    /// Adds a chain that only other chains lead to.
    pub(crate) fn add_regular_chain(&mut self, name: &str) {
        let attrs = Attrs::default().text(1, &self.table).text(3, name);
        let step = format!("add chain `{name}`");
        self.message(MSG_NEWCHAIN, NLM_F_CREATE, attrs, step);
    }

    /// Removes a chain without rules.
    pub(crate) fn delete_chain(&mut self, name: &str) {
        let attrs = Attrs::default().text(1, &self.table).text(3, name);
        self.message(MSG_DELCHAIN, 0, attrs, format!("delete chain `{name}`"));
    }

    /// Removes the rules of a chain.
    pub(crate) fn flush_chain(&mut self, name: &str) {
        let attrs = Attrs::default().text(1, &self.table).text(2, name);
        self.message(MSG_DELRULE, 0, attrs, format!("flush chain `{name}`"));
    }

    /// Adds a named counter.
    pub(crate) fn add_counter(&mut self, name: &str) {
        const NFT_OBJECT_COUNTER: u32 = 1;
        let attrs = Attrs::default()
            .text(1, &self.table)
            .text(2, name)
            .be32(3, NFT_OBJECT_COUNTER)
            .nested(4, &Attrs::default().be64(1, 0).be64(2, 0));
        self.message(
            MSG_NEWOBJ,
            NLM_F_CREATE,
            attrs,
            format!("add counter `{name}`"),
        );
    }

    pub(crate) fn add_set(&mut self, name: &str, kind: SetKind) {
        let value = match kind.value {
            Some((kind, bytes)) => SetValue::Data(kind, bytes),
            None => SetValue::None,
        };
        self.define_set(
            name,
            SetDefinition::of((kind.key_type, kind.key_bytes)).to(value),
        );
    }

    /// Adds a named set or map.
    pub(crate) fn define_set(&mut self, name: &str, definition: SetDefinition) {
        let id = self.take_set_id();
        let attrs = Attrs::default().text(1, &self.table).text(2, name);
        let attrs = definition.attributes(attrs, 0).be32(10, id);
        self.message(MSG_NEWSET, NLM_F_CREATE, attrs, format!("add set `{name}`"));
    }

    /// Removes a set that nothing refers to.
    pub(crate) fn delete_set(&mut self, name: &str) {
        let attrs = Attrs::default().text(1, &self.table).text(2, name);
        self.message(MSG_DELSET, 0, attrs, format!("delete set `{name}`"));
    }

    fn take_set_id(&mut self) -> u32 {
        let id = self.next_set_id;
        self.next_set_id += 1;
        id
    }

    pub(crate) fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let ids: Vec<u32> = rule
            .anonymous_sets()
            .map(|set| self.add_anonymous_set(set, chain))
            .collect();
        let attrs = Attrs::default()
            .text(1, &self.table)
            .text(2, chain)
            .nested(4, &rule.attributes(&ids));
        let step = format!("add rule to chain `{chain}`");
        self.message(MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, attrs, step);
    }

    /// A set that lives and dies with the rule which follows.
    fn add_anonymous_set(&mut self, set: &AnonymousSet, chain: &str) -> u32 {
        let id = self.take_set_id();
        let name = set.name();
        let flags = NFT_SET_ANONYMOUS | NFT_SET_CONSTANT;
        let attrs = Attrs::default().text(1, &self.table).text(2, name);
        let attrs = set.definition.attributes(attrs, flags).be32(10, id);
        let step = format!("add a set of chain `{chain}`");
        self.message(MSG_NEWSET, NLM_F_CREATE, attrs, step.clone());
        for chunk in set.elements.chunks(ELEMENTS_PER_MESSAGE_MAX) {
            let list = chunk
                .iter()
                .fold(Attrs::default(), |list, one| one.write(list));
            let attrs = Attrs::default()
                .text(1, &self.table)
                .text(2, name)
                .nested(3, &list)
                .be32(4, id);
            self.message(MSG_NEWSETELEM, NLM_F_CREATE, attrs, step.clone());
        }
        id
    }

    /// Adds elements, each a key and (in maps) a value.
    pub(crate) fn add_elements(&mut self, set: &str, elements: &[(Vec<u8>, Option<Vec<u8>>)]) {
        let elements = elements.iter().map(|(key, value)| Element {
            key: key.clone(),
            end: None,
            value: value.clone().map(Value::Data),
        });
        self.insert(set, elements);
    }

    /// Deletes elements; one that is not there fails the transaction.
    pub(crate) fn delete_elements(&mut self, set: &str, keys: &[Vec<u8>]) {
        let elements = keys.iter().map(|key| Element {
            key: key.clone(),
            end: None,
            value: None,
        });
        self.remove(set, elements);
    }

    /// Adds elements.
    pub(crate) fn insert(&mut self, set: &str, elements: impl IntoIterator<Item = Element>) {
        let step = format!("add elements to set `{set}`");
        self.elements(MSG_NEWSETELEM, NLM_F_CREATE, set, elements, &step);
    }

    /// Deletes elements, whose values don't matter; one that is not there fails the transaction.
    pub(crate) fn remove(&mut self, set: &str, elements: impl IntoIterator<Item = Element>) {
        let step = format!("delete elements from set `{set}`");
        self.elements(MSG_DELSETELEM, 0, set, elements, &step);
    }

    fn elements(
        &mut self,
        message: u16,
        flags: u16,
        set: &str,
        elements: impl IntoIterator<Item = Element>,
        step: &str,
    ) {
        let elements: Vec<Element> = elements.into_iter().collect();
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE_MAX) {
            let list = chunk
                .iter()
                .fold(Attrs::default(), |list, one| one.write(list));
            let attrs = Attrs::default()
                .text(1, &self.table)
                .text(2, set)
                .nested(3, &list);
            self.message(message, flags, attrs, step.to_owned());
        }
    }

    /// Whether nothing is to be done.
    pub(crate) fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The bytes to send, and what each message does. Only the last message is acknowledged if it is taken, since
    /// thousands of acknowledgements would overflow the socket; a refused one is always answered.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<String>) {
        if let Some(at) = self.last_message {
            let flags = u16::from_ne_bytes([self.bytes[at + 6], self.bytes[at + 7]]) | NLM_F_ACK;
            self.bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
        }
        self.frame(BATCH_END);
        (self.bytes, self.steps)
    }

    fn frame(&mut self, kind: u16) {
        self.header(kind, NLM_F_REQUEST, 0, 0, SUBSYSTEM, &[]);
    }

    fn message(&mut self, message: u16, flags: u16, attrs: Attrs, step: String) {
        self.steps.push(step);
        let sequence = u32::try_from(self.steps.len()).unwrap_or(u32::MAX);
        let kind = SUBSYSTEM << 8 | message;
        let flags = NLM_F_REQUEST | flags;
        self.last_message = Some(self.bytes.len());
        self.header(kind, flags, sequence, self.family, 0, &attrs.0);
    }

    fn header(&mut self, kind: u16, flags: u16, seq: u32, family: u8, resource: u16, body: &[u8]) {
        let length = u32::try_from(16 + 4 + body.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(seq.to_ne_bytes());
        self.bytes.extend(0u32.to_ne_bytes());
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(body);
    }
}
