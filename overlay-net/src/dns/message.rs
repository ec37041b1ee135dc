//! Questions and answers as bytes: what a packet asks, and what the zone makes of it.

use super::table::Addresses;
use super::zone::{Found, Zone};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinEncodable, BinEncoder};
use shoal_model::NetworkId;
use std::net::IpAddr;

/// How long an answer may be remembered, in seconds: no longer than a task that leaves is given to drain.
const TTL_S: u32 = 1;
/// Largest answer by UDP to a client that does not say what it takes, in bytes (RFC 1035, section 4.2.1).
const UDP_ANSWER_BYTES_MIN: u16 = 512;
/// Largest packet by UDP, in bytes: what clients are told that they may send, and the most that they get.
pub(super) const UDP_BYTES_MAX: usize = 4_096;
/// Length of an OPT record without options, in bytes.
const OPT_BYTES: usize = 11;
/// Most addresses in one answer; more do not fit into 64 KiB.
const ADDRESSES_MAX: usize = 2_000;
/// Length of the header, in bytes.
const HEADER_BYTES: usize = 12;
/// The flags byte with QR, opcode and TC, and the bits in it.
const FLAGS: usize = 2;
const QR: u8 = 0x80;
const TC: u8 = 0x02;

/// By which way a question came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Udp,
    Tcp,
}

/// What a local answer says, for the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Answered,
    Empty,
    Unknown,
    Refused,
}

/// What is to be done with a packet.
#[derive(Debug)]
pub(super) enum Reply {
    /// It is answered here.
    Answer(Vec<u8>, Outcome),
    /// It is asked outside; `failure` is what to say when nobody answers there.
    Forward { failure: Vec<u8> },
    /// It is no question that can be answered.
    Nothing,
}

/// Decides about a packet of a container that is in `networks`. `shuffle` brings addresses into an order of chance.
pub(super) fn reply_to(
    zone: &Zone,
    networks: &[NetworkId],
    packet: &[u8],
    transport: Transport,
    shuffle: &mut dyn FnMut(&mut [Addresses]),
) -> Reply {
    let Some(counts) = Counts::of(packet) else {
        return Reply::Nothing;
    };
    // Messages that are not questions are not answered: two that answer each other's errors would never end.
    if packet[FLAGS] & QR != 0 {
        return Reply::Nothing;
    }
    if !counts.is_plain_question() {
        return Reply::Answer(bare_error(packet, ResponseCode::FormErr), Outcome::Refused);
    }
    let Ok(message) = Message::from_vec(packet) else {
        return Reply::Nothing;
    };
    let asked = Asked {
        message: &message,
        query: &message.queries[0],
        transport,
    };
    if let Some(refusal) = asked.refusal() {
        return Reply::Answer(asked.encode(refusal, Vec::new()), Outcome::Refused);
    }
    match asked.look_up(zone, networks, shuffle) {
        Found::Here(records) => {
            let outcome = match records.is_empty() {
                true => Outcome::Empty,
                false => Outcome::Answered,
            };
            Reply::Answer(asked.encode(ResponseCode::NoError, records), outcome)
        }
        Found::Nowhere => {
            let answer = asked.encode(ResponseCode::NXDomain, Vec::new());
            Reply::Answer(answer, Outcome::Unknown)
        }
        Found::NotOurs => {
            let failure = asked.encode(ResponseCode::ServFail, Vec::new());
            match zone.sees_outside(networks) {
                true => Reply::Forward { failure },
                false => Reply::Answer(failure, Outcome::Refused),
            }
        }
    }
}

/// The numbers of entries that a header announces. They are checked before anything is decoded.
struct Counts([u16; 4]);

impl Counts {
    fn of(packet: &[u8]) -> Option<Self> {
        let header = packet.get(..HEADER_BYTES)?;
        let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        Some(Self([count(4), count(6), count(8), count(10)]))
    }

    /// One question, and at most an OPT and a signature beside it.
    fn is_plain_question(&self) -> bool {
        matches!(self.0, [1, 0, 0, 0..=2])
    }
}

/// One question with its circumstances.
struct Asked<'m> {
    message: &'m Message,
    query: &'m Query,
    transport: Transport,
}

impl Asked<'_> {
    fn refusal(&self) -> Option<ResponseCode> {
        let too_new = |edns: &Edns| edns.version() != 0;
        if self.message.metadata.op_code != OpCode::Query {
            return Some(ResponseCode::NotImp);
        }
        if self.message.edns.as_ref().is_some_and(too_new) {
            return Some(ResponseCode::BADVERS);
        }
        let transfer = matches!(self.query.query_type(), RecordType::AXFR | RecordType::IXFR);
        (transfer || self.query.query_class() != DNSClass::IN).then_some(ResponseCode::Refused)
    }

    fn look_up(
        &self,
        zone: &Zone,
        networks: &[NetworkId],
        shuffle: &mut dyn FnMut(&mut [Addresses]),
    ) -> Found<Vec<Record>> {
        let name = self.query.name();
        let kind = self.query.query_type();
        if let Some(address) = address_in(name) {
            return match zone.name_of(networks, address) {
                Found::Here(text) => Found::Here(self.pointer(&text)),
                Found::Nowhere => Found::Nowhere,
                Found::NotOurs => Found::NotOurs,
            };
        }
        let text = name.to_lowercase().to_ascii();
        match zone.addresses(networks, text.trim_end_matches('.')) {
            Found::Here(mut addresses) => {
                shuffle(&mut addresses);
                addresses.truncate(ADDRESSES_MAX);
                let wanted = addresses
                    .iter()
                    .flat_map(|one| one.each())
                    .filter(|address| match address {
                        IpAddr::V4(_) => matches!(kind, RecordType::A | RecordType::ANY),
                        IpAddr::V6(_) => matches!(kind, RecordType::AAAA | RecordType::ANY),
                    });
                Found::Here(wanted.map(|address| self.address(address)).collect())
            }
            Found::Nowhere => Found::Nowhere,
            Found::NotOurs => Found::NotOurs,
        }
    }

    fn address(&self, address: IpAddr) -> Record {
        let data = match address {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        Record::from_rdata(self.query.name().clone(), TTL_S, data)
    }

    fn pointer(&self, text: &str) -> Vec<Record> {
        let wanted = matches!(self.query.query_type(), RecordType::PTR | RecordType::ANY);
        // A name that is no domain name (a label of more than 63 bytes) can't be told.
        let target = Name::from_ascii(format!("{text}.")).ok().filter(|_| wanted);
        let record =
            |target| Record::from_rdata(self.query.name().clone(), TTL_S, RData::PTR(PTR(target)));
        target.map(record).into_iter().collect()
    }

    /// The answer's bytes; by UDP with as many records as the client takes, and the sign to ask again by TCP.
    fn encode(&self, code: ResponseCode, records: Vec<Record>) -> Vec<u8> {
        let mut answer = Message::new(
            self.message.metadata.id,
            MessageType::Response,
            self.message.metadata.op_code,
        );
        answer.metadata.recursion_desired = self.message.metadata.recursion_desired;
        answer.metadata.checking_disabled = self.message.metadata.checking_disabled;
        answer.metadata.recursion_available = true;
        answer.metadata.authoritative =
            matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
        answer.metadata.response_code = code;
        answer.add_query(self.query.clone());
        answer.answers = records;
        let edns = self.message.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(UDP_BYTES_MAX as u16);
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        let room = self.limit() - edns.as_ref().map_or(0, |_| OPT_BYTES);
        let fits = answers_within(&answer, room);
        answer.metadata.truncation = fits < answer.answers.len();
        answer.answers.truncate(fits);
        answer.edns = edns;
        encoded(&answer)
    }

    fn limit(&self) -> usize {
        match (self.transport, &self.message.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, None) => usize::from(UDP_ANSWER_BYTES_MIN),
            (Transport::Udp, Some(edns)) => {
                usize::from(edns.max_payload().max(UDP_ANSWER_BYTES_MIN)).min(UDP_BYTES_MAX)
            }
        }
    }
}

/// How many of a message's answers fit into `limit` bytes.
fn answers_within(message: &Message, limit: usize) -> usize {
    let mut bytes = Vec::with_capacity(limit.min(UDP_BYTES_MAX));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(u16::try_from(limit).unwrap_or(u16::MAX));
    match message.emit(&mut encoder) {
        Ok(()) => Counts::of(&bytes).map_or(0, |counts| usize::from(counts.0[1])),
        Err(_) => 0,
    }
}

fn encoded(message: &Message) -> Vec<u8> {
    message.to_vec().unwrap_or_else(|err| {
        // All parts were decoded before or are built above; a message that fails to encode is answered by silence.
        tracing::warn!(%err, "an answer could not be encoded");
        Vec::new()
    })
}

/// The address that a name below in-addr.arpa or ip6.arpa stands for; `None` for other names and for whole networks.
fn address_in(name: &Name) -> Option<IpAddr> {
    let mut name = name.clone();
    name.set_fqdn(true);
    let net = name.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// An error without a question, for packets whose question can't be repeated.
fn bare_error(packet: &[u8], code: ResponseCode) -> Vec<u8> {
    let id = u16::from_be_bytes([packet[0], packet[1]]);
    encoded(&Message::error_msg(id, OpCode::Query, code))
}

/// The id of a packet.
pub(super) fn id_of(packet: &[u8]) -> u16 {
    match packet {
        [high, low, ..] => u16::from_be_bytes([*high, *low]),
        _ => 0,
    }
}

/// Gives a packet another id.
pub(super) fn set_id(packet: &mut [u8], id: u16) {
    if let [high, low, ..] = packet {
        [*high, *low] = id.to_be_bytes();
    }
}

/// What a server outside made of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Judged {
    /// It is no answer to this question.
    Foreign,
    /// The server can't or will not answer: another one may.
    Failed,
    /// An answer; `truncated`: the rest is to be had by TCP.
    Good { truncated: bool },
}

/// Whether `answer` is one to `question`. Both are bytes as they travelled.
pub(super) fn judge(question: &[u8], answer: &[u8]) -> Judged {
    let (Some(asked), Some(counts)) = (question_of(question), Counts::of(answer)) else {
        return Judged::Foreign;
    };
    if id_of(question) != id_of(answer) || answer[FLAGS] & QR == 0 {
        return Judged::Foreign;
    }
    let code = answer[FLAGS + 1] & 0x0f;
    let repeats = question_of(answer).is_some_and(|other| other.eq_ignore_ascii_case(asked));
    match (repeats, counts.0[0], code) {
        // A server that understood nothing may leave the question out.
        (false, 0, 1..) => Judged::Failed,
        (false, _, _) => Judged::Foreign,
        (true, _, 0 | 1 | 3) => Judged::Good {
            truncated: answer[FLAGS] & TC != 0,
        },
        (true, _, _) => Judged::Failed,
    }
}

/// The bytes of a packet's one question: name, type and class.
fn question_of(packet: &[u8]) -> Option<&[u8]> {
    if Counts::of(packet)?.0[0] != 1 {
        return None;
    }
    let mut at = HEADER_BYTES;
    loop {
        let length = usize::from(*packet.get(at)?);
        // The first name of a message has nothing before it that it could point to.
        if length > 63 {
            return None;
        }
        at += 1 + length;
        if length == 0 {
            return packet.get(HEADER_BYTES..at + 4);
        }
    }
}

/// The largest answer by UDP to the client that sent `question`.
pub(super) fn udp_limit(question: &[u8]) -> usize {
    let Ok(message) = Message::from_vec(question) else {
        return usize::from(UDP_ANSWER_BYTES_MIN);
    };
    let asked = message.edns.as_ref().map_or(0, Edns::max_payload);
    usize::from(asked.max(UDP_ANSWER_BYTES_MIN)).min(UDP_BYTES_MAX)
}

/// An answer from outside that is longer than its asker takes: header and question, and the sign to ask by TCP.
pub(super) fn cut(answer: &[u8]) -> Option<Vec<u8>> {
    let question = question_of(answer)?;
    let mut short = answer.get(..HEADER_BYTES + question.len())?.to_vec();
    short[FLAGS] |= TC;
    short[6..HEADER_BYTES].fill(0);
    Some(short)
}
