//! The API and the page as services, mounted without a framework.

#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use http::header::{ALLOW, CONTENT_LENGTH, CONTENT_TYPE, COOKIE};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty, Full, Limited};
use patkit::http::{Authenticator, Console, ManagementApi, ProblemBody};
use patkit::{
    Actor, Keyring, MemoryDirectory, MemoryStore, Owner, OwnerId, OwnerKind, TokenService,
};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tower::ServiceExt;

type Bytes = axum::body::Bytes;
type Tokens = TokenService<MemoryStore, MemoryDirectory>;

fn id(text: &str) -> OwnerId {
    OwnerId::new(text).unwrap()
}

fn tokens() -> Arc<Tokens> {
    let mel = Owner::new(id("mel"), OwnerKind::Human).with_role("member");
    let tokens = TokenService::builder(MemoryStore::new(), MemoryDirectory::from_iter([mel]));
    Arc::new(tokens.brand("acme").keyring(Keyring::ephemeral().unwrap()).build().unwrap())
}

/// Signs in the user named in the cookie, which no browser sends here.
fn signed_in(request: &Parts) -> Option<Actor> {
    let cookie = request.headers.get(COOKIE)?.to_str().ok()?;
    Some(Actor::signed_in(id(cookie.strip_prefix("session=")?)).proven_by_header())
}

fn request(method: Method, path: &str) -> Request<Empty<Bytes>> {
    let request = Request::builder().method(method).uri(path).header(COOKIE, "session=mel");
    request.body(Empty::new()).unwrap()
}

async fn text(response: Response<Full<Bytes>>) -> String {
    let bytes = response.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn code(response: Response<Full<Bytes>>) -> (u16, String) {
    assert_eq!(response.headers()[CONTENT_TYPE], "application/problem+json");
    let status = response.status().as_u16();
    (status, serde_json::from_str::<ProblemBody>(&text(response).await).unwrap().code)
}

#[tokio::test]
async fn a_service_with_a_base_path_answers_below_it_and_nowhere_else() {
    for (base, prefix) in [("", ""), ("/", ""), ("/a/api", "/a/api"), ("/a/api/", "/a/api")] {
        let api = ManagementApi::builder(Authenticator::new(tokens()), signed_in);
        let api = api.base_path(base).build();
        let page = Console::builder(&api, "/api").base_path(base).build();
        let of_api = async |path: &str| {
            api.clone().oneshot(request(Method::GET, &format!("{prefix}{path}"))).await.unwrap()
        };
        let of_page = async |path: &str| {
            page.clone().oneshot(request(Method::GET, &format!("{prefix}{path}"))).await.unwrap()
        };
        assert_eq!(of_api("/user-tokens").await.status(), 200, "{base}");
        assert_eq!(of_api("/user-tokens?limit=%31").await.status(), 200, "{base}");
        for file in ["/", "/style.css", "/script.js", "/settings.json"] {
            assert_eq!(of_page(file).await.status(), 200, "{base} {file}");
        }
        let no_such_path = (404, "no_such_path".to_owned());
        for path in
            ["/", "//user-tokens", "/user-tokens/", "/user-tokens/x/", "/user-tokens//rotate"]
        {
            assert_eq!(code(of_api(path).await).await, no_such_path, "{base} {path}");
        }
        assert_eq!(code(of_page("/style.css/").await).await, no_such_path, "{base}");
        for outside in ["/b/user-tokens", "/a/apix/user-tokens", "/a/api/a/api/user-tokens"] {
            let response = api.clone().oneshot(request(Method::GET, outside)).await.unwrap();
            assert_eq!(code(response).await, no_such_path, "{base} {outside}");
        }
    }
}

#[tokio::test]
async fn a_page_finds_its_files_with_and_without_a_trailing_slash() {
    let api = ManagementApi::new(Authenticator::new(tokens()), signed_in);
    let page = Console::builder(&api, "/api").base_path("/settings/tokens").build();
    for (path, link) in [
        ("/settings/tokens", "href=\"./tokens/style.css\""),
        ("/settings/tokens/", "href=\"style.css\""),
    ] {
        let html = text(page.clone().oneshot(request(Method::GET, path)).await.unwrap()).await;
        assert!(html.contains(link), "{path}: {html:.600}");
    }
}

#[tokio::test]
async fn an_answer_to_head_is_that_to_get_without_its_body() {
    let api = ManagementApi::new(Authenticator::new(tokens()), signed_in);
    let page = Console::new(&api, "/api");
    for path in ["/user-tokens", "/user-tokens/x", "/nothing"] {
        let get = api.clone().oneshot(request(Method::GET, path)).await.unwrap();
        let head = api.clone().oneshot(request(Method::HEAD, path)).await.unwrap();
        same_without_body(get, head).await;
    }
    let get = page.clone().oneshot(request(Method::GET, "/script.js")).await.unwrap();
    let head = page.oneshot(request(Method::HEAD, "/script.js")).await.unwrap();
    same_without_body(get, head).await;
}

async fn same_without_body(get: Response<Full<Bytes>>, head: Response<Full<Bytes>>) {
    assert_eq!(get.status(), head.status());
    let (mut headers, of_head) = (get.headers().clone(), head.headers().clone());
    let body = text(get).await;
    assert!(!body.is_empty());
    headers.insert(CONTENT_LENGTH, body.len().into());
    assert_eq!(headers, of_head);
    assert_eq!(text(head).await, "");
}

#[tokio::test]
async fn a_method_that_a_path_does_not_have_is_a_problem_with_the_methods_that_it_has() {
    let api = ManagementApi::new(Authenticator::new(tokens()), signed_in);
    let page = Console::new(&api, "/api");
    let id = "/user-tokens/x";
    for (method, path, allow) in [
        (Method::DELETE, "/user-tokens", "GET,HEAD,POST"),
        (Method::OPTIONS, "/user-tokens/service", "GET,HEAD"),
        (Method::POST, "/user-tokens/current", "GET,HEAD,DELETE"),
        (Method::CONNECT, id, "GET,HEAD,PUT,PATCH,DELETE"),
        (Method::HEAD, "/user-tokens/x/rotate", "POST"),
        (Method::from_bytes(b"BREW").unwrap(), "/user-tokens/service/rotate", "POST"),
    ] {
        let response = api.clone().oneshot(request(method.clone(), path)).await.unwrap();
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method} {path}");
        assert_eq!(response.headers()[ALLOW], allow, "{method} {path}");
        if method != Method::HEAD {
            assert_eq!(code(response).await.1, "method_not_allowed");
        }
    }
    let response = page.oneshot(request(Method::POST, "/")).await.unwrap();
    assert_eq!(response.headers()[ALLOW], "GET,HEAD");
    assert_eq!(code(response).await, (405, "method_not_allowed".to_owned()));
}

/// A body whose frames come one at a time and may be errors, as those of a connection.
struct Frames(VecDeque<Result<Bytes, io::Error>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, io::Error>>> {
        Poll::Ready(self.0.pop_front().map(|frame| frame.map(http_body::Frame::data)))
    }
}

#[tokio::test]
async fn a_body_of_any_type_is_read_up_to_its_bound() {
    let api = ManagementApi::new(Authenticator::new(tokens()), signed_in);
    let post = |body| {
        let request = Request::post("/user-tokens").header(COOKIE, "session=mel");
        request.header(CONTENT_TYPE, "application/json").body(body).unwrap()
    };
    let frames = |frames: &[&'static str]| {
        Frames(frames.iter().map(|text| Ok(Bytes::from_static(text.as_bytes()))).collect())
    };
    let made = api.clone().oneshot(post(frames(&["{\"na", "", "me\":\"a\"}"]))).await.unwrap();
    assert_eq!(made.status(), 201);

    let mut broken = frames(&["{\"name\""]);
    broken.0.push_back(Err(io::Error::other("the connection is closed")));
    let refused = api.clone().oneshot(post(broken)).await.unwrap();
    assert_eq!(code(refused).await, (400, "invalid_body".to_owned()));

    let endless = Frames((0..3_000).map(|_| Ok(Bytes::from_static(&[b' '; 1024]))).collect());
    let refused = api.clone().oneshot(post(endless)).await.unwrap();
    assert_eq!(code(refused).await, (413, "too_large".to_owned()));

    // A limit of the host's around the body.
    let request = post(frames(&["{\"name\":\"b\"}"]));
    let limited = request.map(|body| Limited::new(body, 5));
    let refused = api.clone().oneshot(limited).await.unwrap();
    assert_eq!(code(refused).await, (413, "too_large".to_owned()));
    let limited = post(frames(&["{\"name\":\"b\"}"]))
        .map(|body| axum::body::Body::new(Limited::new(body, 5)));
    let refused = api.oneshot(limited).await.unwrap();
    assert_eq!(code(refused).await, (413, "too_large".to_owned()));
}
