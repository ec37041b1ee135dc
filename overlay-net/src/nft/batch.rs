//! Building the bytes of one nftables transaction.

use super::expr::Rule;

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
const MSG_NEWRULE: u16 = 6;
const MSG_NEWSET: u16 = 9;
const MSG_NEWSETELEM: u16 = 12;
const MSG_DELSETELEM: u16 = 14;

/// Elements in one message: the attribute that holds them has a 16-bit length.
const ELEMENTS_PER_MESSAGE_MAX: usize = 500;

/// Attributes of a netlink message, appended one after the other.
#[derive(Default)]
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
#[derive(Debug, Clone, Copy)]
pub(crate) enum ChainKind {
    Filter,
    Nat,
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy)]
pub(crate) enum ChainHook {
    Prerouting,
    Forward,
    Output,
    Postrouting,
}

impl ChainHook {
    /// `enum nf_inet_hooks`.
    const fn number(self) -> u32 {
        match self {
            Self::Prerouting => 0,
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

/// One transaction.
pub(crate) struct Batch {
    family: u8,
    table: String,
    bytes: Vec<u8>,
    /// What each message does, in order, for error texts.
    steps: Vec<String>,
    next_set_id: u32,
}

impl Batch {
    pub(crate) fn new(family: u8, table: &str) -> Self {
        let mut batch = Self {
            family,
            table: table.to_owned(),
            bytes: Vec::with_capacity(4096),
            steps: Vec::new(),
            next_set_id: 1,
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

    pub(crate) fn add_set(&mut self, name: &str, kind: SetKind) {
        const NFT_SET_MAP: u32 = 0x8;
        let mut attrs = Attrs::default()
            .text(1, &self.table)
            .text(2, name)
            .be32(3, if kind.value.is_some() { NFT_SET_MAP } else { 0 })
            .be32(4, kind.key_type)
            .be32(5, kind.key_bytes);
        if let Some((value_type, value_bytes)) = kind.value {
            attrs = attrs.be32(6, value_type).be32(7, value_bytes);
        }
        attrs = attrs.be32(10, self.next_set_id);
        self.next_set_id += 1;
        self.message(MSG_NEWSET, NLM_F_CREATE, attrs, format!("add set `{name}`"));
    }

    pub(crate) fn add_rule(&mut self, chain: &str, rule: &Rule) {
        let attrs = Attrs::default()
            .text(1, &self.table)
            .text(2, chain)
            .nested(4, &rule.attributes());
        let step = format!("add rule to chain `{chain}`");
        self.message(MSG_NEWRULE, NLM_F_CREATE | NLM_F_APPEND, attrs, step);
    }

    /// Adds elements, each a key and (in maps) a value.
    pub(crate) fn add_elements(&mut self, set: &str, elements: &[(Vec<u8>, Option<Vec<u8>>)]) {
        let step = format!("add elements to set `{set}`");
        self.elements(MSG_NEWSETELEM, NLM_F_CREATE, set, elements, &step);
    }

    /// Deletes elements; one that is not there fails the transaction.
    pub(crate) fn delete_elements(&mut self, set: &str, keys: &[Vec<u8>]) {
        let elements: Vec<_> = keys.iter().map(|key| (key.clone(), None)).collect();
        let step = format!("delete elements from set `{set}`");
        self.elements(MSG_DELSETELEM, 0, set, &elements, &step);
    }

    fn elements(
        &mut self,
        message: u16,
        flags: u16,
        set: &str,
        elements: &[(Vec<u8>, Option<Vec<u8>>)],
        step: &str,
    ) {
        for chunk in elements.chunks(ELEMENTS_PER_MESSAGE_MAX) {
            let mut list = Attrs::default();
            for (key, value) in chunk {
                let mut element = Attrs::default().nested(1, &Attrs::default().bytes(1, key));
                if let Some(value) = value {
                    element = element.nested(2, &Attrs::default().bytes(1, value));
                }
                list = list.nested(1, &element);
            }
            let attrs = Attrs::default()
                .text(1, &self.table)
                .text(2, set)
                .nested(3, &list);
            self.message(message, flags, attrs, step.to_owned());
        }
    }

    /// The bytes to send, and what each acknowledged message does.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<String>) {
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
        let flags = NLM_F_REQUEST | NLM_F_ACK | flags;
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
