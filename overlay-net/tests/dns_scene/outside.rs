//! Small name servers that stand for the outside.

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// How often a server looks whether it is to end.
const TURN: Duration = Duration::from_millis(20);

#[derive(Clone, Copy)]
enum Manner {
    /// Every name has this address.
    Address(Ipv4Addr),
    Refuse,
    /// Asks another server, and passes its answer on.
    Ask(SocketAddr),
}

/// A server at work; it ends when it is dropped.
pub(crate) struct Outside {
    seen: Arc<Seen>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    questions: AtomicUsize,
    /// Payload size and DO of the last question.
    edns: Mutex<Option<(u16, bool)>>,
}

impl Outside {
    pub(crate) fn start(netns: Option<PathBuf>, at: SocketAddr, address: &str) -> Self {
        Self::run(netns, at, Manner::Address(address.parse().unwrap()))
    }

    pub(crate) fn refusing(netns: Option<PathBuf>, at: SocketAddr) -> Self {
        Self::run(netns, at, Manner::Refuse)
    }

    pub(crate) fn asking(netns: Option<PathBuf>, at: SocketAddr, other: &str) -> Self {
        Self::run(netns, at, Manner::Ask(other.parse().unwrap()))
    }

    fn run(netns: Option<PathBuf>, at: SocketAddr, manner: Manner) -> Self {
        let seen = Arc::new(Seen::default());
        let (ready, bound) = std::sync::mpsc::channel();
        let by_udp = {
            let (seen, netns, ready) = (Arc::clone(&seen), netns.clone(), ready.clone());
            std::thread::spawn(move || udp(&seen, netns, at, manner, &ready))
        };
        let by_tcp = {
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || tcp(&seen, netns, at, manner, &ready))
        };
        bound.recv().unwrap();
        bound.recv().unwrap();
        Self {
            seen,
            threads: vec![by_udp, by_tcp],
        }
    }

    pub(crate) fn questions(&self) -> usize {
        self.seen.questions.load(Ordering::SeqCst)
    }

    pub(crate) fn last_edns(&self) -> Option<(u16, bool)> {
        *self.seen.edns.lock().unwrap()
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

fn enter(netns: Option<PathBuf>) {
    if let Some(path) = netns {
        setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
    }
}

fn udp(
    seen: &Arc<Seen>,
    netns: Option<PathBuf>,
    at: SocketAddr,
    manner: Manner,
    ready: &Sender<()>,
) {
    enter(netns);
    let socket = Arc::new(UdpSocket::bind(at).unwrap());
    socket.set_read_timeout(Some(TURN)).unwrap();
    ready.send(()).unwrap();
    let mut buffer = [0; 4096];
    while !seen.stop.load(Ordering::SeqCst) {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let question = buffer[..length].to_vec();
        if let Manner::Ask(other) = manner {
            seen.questions.fetch_add(1, Ordering::SeqCst);
            let socket = Arc::clone(&socket);
            std::thread::spawn(move || {
                if let Some(answer) = passed_on(&question, other) {
                    socket.send_to(&answer, client).unwrap();
                }
            });
        } else {
            socket
                .send_to(&answer(seen, &question, manner), client)
                .unwrap();
        }
    }
}

fn passed_on(question: &[u8], other: SocketAddr) -> Option<Vec<u8>> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    socket.connect(other).unwrap();
    socket.send(question).unwrap();
    let mut buffer = vec![0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    buffer.truncate(length);
    Some(buffer)
}

fn tcp(
    seen: &Arc<Seen>,
    netns: Option<PathBuf>,
    at: SocketAddr,
    manner: Manner,
    ready: &Sender<()>,
) {
    enter(netns);
    let listener = TcpListener::bind(at).unwrap();
    listener.set_nonblocking(true).unwrap();
    ready.send(()).unwrap();
    while !seen.stop.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                let mut length = [0; 2];
                stream.read_exact(&mut length).unwrap();
                let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
                stream.read_exact(&mut question).unwrap();
                let answer = answer(seen, &question, manner);
                stream
                    .write_all(&(answer.len() as u16).to_be_bytes())
                    .unwrap();
                stream.write_all(&answer).unwrap();
            }
            Err(err) => {
                assert_eq!(err.kind(), ErrorKind::WouldBlock);
                std::thread::park_timeout(TURN);
            }
        }
    }
}

fn answer(seen: &Seen, question: &[u8], manner: Manner) -> Vec<u8> {
    seen.questions.fetch_add(1, Ordering::SeqCst);
    let asked = Message::from_vec(question).unwrap();
    *seen.edns.lock().unwrap() = asked
        .edns
        .as_ref()
        .map(|edns| (edns.max_payload(), edns.flags().dnssec_ok));
    let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    let query = asked.queries[0].clone();
    answer.add_query(query.clone());
    match manner {
        Manner::Address(address) if query.query_type() == RecordType::A => {
            let data = RData::A(A(address));
            answer.add_answer(Record::from_rdata(query.name().clone(), 300, data));
        }
        Manner::Address(_) => {}
        Manner::Refuse | Manner::Ask(_) => {
            answer.metadata.response_code = ResponseCode::Refused;
        }
    }
    answer.to_vec().unwrap()
}

/// The bytes of a question for an address.
pub(crate) fn question(name: &str, id: u16) -> Vec<u8> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}
