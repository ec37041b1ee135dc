//! Three etcd members, written to by gRPC: HTTP/2 and two protobuf messages, by hand.

use crate::load::KEYS;
use anyhow::{Context as _, ensure};
use bytes::{BufMut as _, Bytes, BytesMut};
use h2::client::SendRequest;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Connections that the clients share.
const CONNECTIONS_MAX: u32 = 16;
const CLIENT_PORT: u16 = 23_790;
const PEER_PORT: u16 = 23_900;

/// The members; killed when dropped.
pub(crate) struct Etcd(Vec<Child>);

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

impl Etcd {
    /// Their process ids.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.0.iter().map(Child::id).collect()
    }

    /// Resident memory of each member, in KiB.
    pub(crate) fn memory_kib(&self) -> Vec<u64> {
        crate::managers::memory_kib(self.0.iter())
    }
}

/// Starts the members with their data in `directory`.
pub(crate) fn start(directory: &Path) -> anyhow::Result<Etcd> {
    let peers: Vec<String> = (0..3)
        .map(|id| format!("m{id}=http://127.0.0.1:{}", PEER_PORT + id))
        .collect();
    let mut etcd = Etcd(Vec::new());
    for id in 0..3 {
        let client = format!("http://127.0.0.1:{}", CLIENT_PORT + id);
        let peer = format!("http://127.0.0.1:{}", PEER_PORT + id);
        let child = Command::new("etcd")
            .args(["--name", &format!("m{id}"), "--data-dir"])
            .arg(directory.join(format!("etcd-{id}")))
            .args([
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
            ])
            .args([
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
            ])
            .args([
                "--initial-cluster",
                &peers.join(","),
                "--quota-backend-bytes",
                "8000000000",
            ])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("failed to start etcd")?;
        etcd.0.push(child);
    }
    Ok(etcd)
}

/// Connections to the leader.
#[derive(Clone)]
pub(crate) struct Client(Arc<Vec<SendRequest<Bytes>>>);

impl Client {
    /// Finds the leader and connects.
    pub(crate) async fn connect(clients: u32) -> anyhow::Result<Self> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let leader = loop {
            if let Some(leader) = find_leader().await {
                break leader;
            }
            ensure!(Instant::now() < deadline, "etcd has no leader");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let mut connections = Vec::new();
        for _ in 0..clients.min(CONNECTIONS_MAX) {
            connections.push(open(leader).await?);
        }
        Ok(Self(Arc::new(connections)))
    }

    /// Puts a value, as that client.
    pub(crate) async fn put(&self, client: u32, value: String) -> anyhow::Result<()> {
        let key = client % KEYS;
        let mut message = BytesMut::new();
        put_bytes(&mut message, 1, format!("key-{key}").as_bytes());
        put_bytes(&mut message, 2, value.as_bytes());
        let connection = &self.0[client as usize % self.0.len()];
        call(connection.clone(), "/etcdserverpb.KV/Put", &message)
            .await
            .map(drop)
    }
}

impl Client {
    /// Reads a value linearizably, as that client.
    pub(crate) async fn get(&self, client: u32) -> anyhow::Result<()> {
        let key = client % KEYS;
        let mut message = BytesMut::new();
        put_bytes(&mut message, 1, format!("key-{key}").as_bytes());
        let connection = &self.0[client as usize % self.0.len()];
        call(connection.clone(), "/etcdserverpb.KV/Range", &message)
            .await
            .map(drop)
    }
}

async fn open(addr: SocketAddr) -> anyhow::Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(addr).await?;
    stream.set_nodelay(true)?;
    let (send, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(async move {
        if let Err(err) = connection.await {
            eprintln!("a connection to etcd ended: {err}");
        }
    });
    Ok(send)
}

async fn call(send: SendRequest<Bytes>, method: &str, message: &[u8]) -> anyhow::Result<Bytes> {
    let request = http::Request::post(format!("http://etcd{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())?;
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.len())?);
    frame.put_slice(message);
    let mut send = send.ready().await?;
    let (answer, mut body) = send.send_request(request, false)?;
    body.send_data(frame.freeze(), true)?;
    let mut answer = answer.await?.into_body();
    let mut bytes = BytesMut::new();
    while let Some(chunk) = answer.data().await {
        let chunk = chunk?;
        answer.flow_control().release_capacity(chunk.len())?;
        bytes.extend_from_slice(&chunk);
    }
    let trailers = answer
        .trailers()
        .await?
        .context("an answer without trailers")?;
    let status = trailers
        .get("grpc-status")
        .context("an answer without status")?;
    ensure!(
        status == "0",
        "etcd answered with status {status:?}: {trailers:?}"
    );
    ensure!(bytes.len() >= 5, "an answer without message");
    Ok(bytes.freeze().slice(5..))
}

/// The member that says of itself that it leads.
async fn find_leader() -> Option<SocketAddr> {
    for id in 0..3 {
        let addr = SocketAddr::from(([127, 0, 0, 1], CLIENT_PORT + id));
        let Ok(connection) = open(addr).await else {
            continue;
        };
        let Ok(status) = call(connection, "/etcdserverpb.Maintenance/Status", &[]).await else {
            continue;
        };
        let header = field(&status, 1)
            .map(|(_, bytes)| bytes)
            .unwrap_or_default();
        let own = field(header, 2).map(|(number, _)| number);
        let leader = field(&status, 4).map(|(number, _)| number);
        if leader.is_some_and(|leader| leader != 0) && own == leader {
            return Some(addr);
        }
    }
    None
}

fn put_bytes(out: &mut BytesMut, field: u8, bytes: &[u8]) {
    out.put_u8((field << 3) | 2);
    let mut length = bytes.len();
    while length >= 0x80 {
        out.put_u8((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    out.put_u8(length as u8);
    out.put_slice(bytes);
}

/// The number or the bytes of a protobuf field.
fn field(mut message: &[u8], wanted: u64) -> Option<(u64, &[u8])> {
    while !message.is_empty() {
        let key = varint(&mut message)?;
        let value = varint(&mut message)?;
        let bytes = if key & 7 == 2 {
            let length = usize::try_from(value).ok()?;
            let (bytes, rest) = message.split_at_checked(length)?;
            message = rest;
            bytes
        } else {
            &[]
        };
        if key >> 3 == wanted {
            return Some((value, bytes));
        }
    }
    None
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}
