use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

fn call(verb: &'static str) -> Call {
    Call { verb, resource: "nodes".into(), path: "/api/v1/nodes".into(), body: None }
}

/// A client of a server that answers one request after the other with these bytes, and then closes.
async fn client(answers: Vec<Vec<u8>>) -> (Client, tokio::task::JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let served = tokio::spawn(async move {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.windows(4).any(|end| end == b"\r\n\r\n") {
                let mut byte = [0; 1024];
                let read = stream.read(&mut byte).await.unwrap();
                assert!(read > 0);
                request.extend_from_slice(&byte[..read]);
            }
            asked.push(String::from_utf8_lossy(&request).into_owned());
            // Who asked may hang up before the end.
            let _ = stream.write_all(&answer).await;
        }
        asked
    });
    let endpoint = Endpoint { host: "127.0.0.1".into(), port, tls: false };
    (Client::new(endpoint, Credentials::new(Path::new("/nowhere"))), served)
}

fn http(status: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

fn endless(start: &str, bytes: usize) -> Vec<u8> {
    let mut all = format!("HTTP/1.1 200 OK\r\n\r\n{start}").into_bytes();
    all.resize(all.len() + bytes, b'x');
    all
}

#[tokio::test]
async fn answers_and_refusals() {
    let forbidden = r#"{"kind":"Status","message":"nodes is\nforbidden","code":403}"#;
    let (client, served) = client(vec![
        http("200 OK", "{}"),
        http("403 Forbidden", forbidden),
        http("500 Oh", "no"),
        http("200 OK", "{}"),
    ])
    .await;
    assert_eq!(client.ask(&call("list")).await.unwrap(), "{}");
    let refused = client.ask(&call("list")).await.unwrap_err();
    assert_eq!(refused.code(), 403);
    assert_eq!(refused.to_string(), "cannot list nodes: nodes is forbidden (403)");
    assert_eq!(client.health().refused["list nodes"], (403, "nodes is forbidden".into()));
    assert!(client.health().away.is_none());
    assert_eq!(client.ask(&call("get")).await.unwrap_err().code(), 500);
    assert_eq!(client.health().away.unwrap().1, "it answers 500: Internal Server Error");
    client.ask(&call("list")).await.unwrap();
    let health = client.health();
    assert!(health.away.is_none() && health.refused.is_empty());
    let asked = served.await.unwrap();
    assert!(asked[0].starts_with("GET /api/v1/nodes HTTP/1.1\r\nhost: 127.0.0.1:"), "{}", asked[0]);
    assert!(!asked[0].contains("authorization"), "no token without TLS");
    let away = client.ask(&call("list")).await.unwrap_err();
    assert!(away.to_string().contains("refused"), "{away}");
}

#[tokio::test]
async fn long_answers_are_cut() {
    let (client, _served) =
        client(vec![endless("{", BODY_MAX_BYTES + 10), b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{".to_vec()])
            .await;
    assert!(client.ask(&call("list")).await.unwrap_err().to_string().contains("more than 16777216 bytes"));
    assert!(client.ask(&call("list")).await.unwrap_err().to_string().contains("was cut off"));
}

#[tokio::test]
async fn lines_of_a_watch() {
    let (client, _served) = client(vec![
        endless("one\n\ntwo\nthree", 0),
        endless("one\n", LINE_MAX_BYTES + 100_000),
        http("410 Gone", r#"{"message":"too old"}"#),
    ])
    .await;
    let mut lines = client.watch(&call("watch")).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap(), b"one");
    assert_eq!(lines.next().await.unwrap().unwrap(), b"two");
    assert_eq!(lines.next().await.unwrap(), None, "half a line is none");
    let mut lines = client.watch(&call("watch")).await.unwrap();
    assert_eq!(lines.next().await.unwrap().unwrap(), b"one");
    assert!(lines.next().await.unwrap_err().to_string().contains("a line of the watch has more than"));
    assert_eq!(client.watch(&call("watch")).await.err().unwrap().code(), 410);
}
