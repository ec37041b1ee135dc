//! Bad input gets a clear answer, and the server lives.

use crate::cluster::FakeCluster;
use crate::harness::{Server, Test, block_on};
use shoal_api::MetricsServer;
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

pub(crate) const TESTS: &[Test] = &[
    ("refusals::bad_requests_get_clear_answers", || {
        block_on(bad_requests_get_clear_answers())
    }),
    (
        "refusals::a_worker_says_that_it_is_none_of_the_managers",
        || block_on(a_worker_says_that_it_is_none_of_the_managers()),
    ),
    (
        "refusals::metrics_are_served_and_nothing_else_at_their_address",
        || block_on(metrics_are_served_and_nothing_else_at_their_address()),
    ),
];

async fn metrics_are_served_and_nothing_else_at_their_address() {
    let server = Server::start(FakeCluster::default()).await;
    let (status, text) = server.request("GET", "/metrics", "").await;
    assert_eq!((status, text.as_str()), (200, Some("shoal_test 1\n")));
    let (status, _) = server.request("GET", "/v1.47/metrics", "").await;
    assert_eq!(status, 200);
    let stop = CancellationToken::new();
    let listener = MetricsServer::bind("127.0.0.1:0".parse().unwrap(), server.cluster.clone());
    let listener = listener.await.unwrap();
    let addr = listener.addr();
    let taken = MetricsServer::bind(addr, server.cluster.clone()).await;
    assert!(taken.is_err(), "the address is taken");
    let serving = tokio::spawn(listener.serve(stop.clone()));
    for (path, expected) in [
        ("/metrics", "HTTP/1.1 200 OK"),
        ("/info", "HTTP/1.1 404 Not Found"),
        ("/containers/json", "HTTP/1.1 404 Not Found"),
    ] {
        let answer = plain_get(addr, path).await;
        assert!(answer.starts_with(expected), "{path}: {answer}");
        assert_eq!(
            answer.ends_with("shoal_test 1\n"),
            path == "/metrics",
            "{answer}"
        );
    }
    stop.cancel();
    serving.await.unwrap();
    server.stop().await;
}

async fn plain_get(addr: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[expect(clippy::too_many_lines, reason = "one flat table")]
async fn bad_requests_get_clear_answers() {
    let server = Server::start(FakeCluster::default()).await;
    for (method, path, body, status, text) in [
        ("GET", "/v1.23/info", "", 400, "too old"),
        ("GET", "/v1.99/info", "", 400, "too new"),
        ("GET", "/nowhere", "", 404, "page not found"),
        ("POST", "/containers/create", "{", 400, "invalid JSON"),
        (
            "POST",
            "/containers/create",
            "[]",
            400,
            "expected an object",
        ),
        (
            "POST",
            "/containers/create",
            r#"{"Image":"a","X":1}"#,
            400,
            "unknown field `X`",
        ),
        (
            "POST",
            "/containers/create",
            r#"{"Image":"nope"}"#,
            404,
            "No such image: nope",
        ),
        (
            "GET",
            "/containers/json?filters=x",
            "",
            400,
            "invalid filter",
        ),
        (
            "GET",
            "/containers/json?filters=%7B%22x%22%3A%5B%5D%7D",
            "",
            400,
            "invalid filter 'x'",
        ),
        (
            "GET",
            "/containers/nope/json",
            "",
            404,
            "No such container: nope",
        ),
        (
            "POST",
            "/containers/nope/wait?condition=never",
            "",
            400,
            "invalid condition",
        ),
        (
            "GET",
            "/containers/nope/logs",
            "",
            400,
            "at least one stream",
        ),
        ("POST", "/networks/create", "{}", 400, "`Name`"),
        ("POST", "/build", "", 501, "not supported yet"),
        ("GET", "/images/search?term=a", "", 501, "not supported"),
        (
            "GET",
            "/services",
            "",
            503,
            "This node is not a swarm manager.",
        ),
        (
            "POST",
            "/swarm/leave",
            "",
            503,
            "This node is not part of a swarm",
        ),
        (
            "POST",
            "/swarm/join",
            r#"{"JoinToken":"t"}"#,
            400,
            "`RemoteAddrs`",
        ),
        ("GET", "/swarm/unlockkey", "", 501, "autolock"),
    ] {
        let (found, value) = server.request(method, path, body).await;
        let message = value["message"].as_str().unwrap_or_default();
        assert_eq!(found, status, "{method} {path}: {value}");
        assert!(message.contains(text), "{method} {path}: {value}");
    }
    let (status, value) = server
        .request("POST", "/containers/create", vec![b' '; 5 << 20])
        .await;
    assert_eq!(
        (
            status,
            value["message"].as_str().unwrap().contains("larger than")
        ),
        (413, true)
    );
    let (status, value) = server.request("GET", "/_ping", "").await;
    assert_eq!((status, value.as_str()), (200, Some("OK")));
    server.stop().await;
}

async fn a_worker_says_that_it_is_none_of_the_managers() {
    let mut cluster = FakeCluster::default();
    cluster.is_worker = true;
    let server = Server::start(cluster).await;
    for path in [
        "/services",
        "/nodes",
        "/tasks",
        "/swarm",
        "/shoal/v1/volumes",
    ] {
        let (status, value) = server.request("GET", path, "").await;
        assert_eq!(status, 503);
        let message = value["message"].as_str().unwrap();
        assert!(message.contains("Worker nodes can't be used"), "{message}");
    }
    server.stop().await;
}
