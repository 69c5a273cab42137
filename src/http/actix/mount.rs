//! The services of this crate as services of an `App`.

#![allow(clippy::future_not_send, reason = "actix handles a request on one thread")]

use super::{head_of, parts_of};
use crate::http::request::{MAX_BODY, MOST_DROPPED};
use crate::http::service::{BoxError, below, no_such_path};
use actix_web::body::{BodySize, BodyStream, MessageBody};
use actix_web::dev::{
    AppService, Payload, ResourceDef, ServiceRequest, ServiceResponse, fn_service,
};
use actix_web::guard::{Guard, fn_guard};
use actix_web::{HttpRequest, ResponseError};
use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::{BodyExt, Full};
use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use tower_service::Service;
use zeroize::Zeroizing;

/// Registers a service for all paths below its base path.
pub(in crate::http) fn register<T>(service: T, base: &str, config: &mut AppService)
where
    T: Service<Request<ReadBody>, Response = http::Response<Full<Bytes>>, Error = Infallible>,
    T: Clone + 'static,
{
    let base = base.to_owned();
    let is_below = fn_guard(move |context| below(context.head().uri.path(), &base).is_some());
    let guards: Vec<Box<dyn Guard>> = vec![Box::new(is_below)];
    let answer = fn_service(move |request| answer(service.clone(), request));
    config.register_service(ResourceDef::prefix(""), Some(guards), answer, None);
}

async fn answer<T>(
    mut service: T,
    request: ServiceRequest,
) -> Result<ServiceResponse, actix_web::Error>
where
    T: Service<Request<ReadBody>, Response = http::Response<Full<Bytes>>, Error = Infallible>,
{
    let (request, payload) = request.into_parts();
    let Some(head) = head_of_request(&request) else {
        return Ok(ServiceResponse::new(request, no_such_path().error_response()));
    };
    let body = ReadBody::of(payload).await;
    let response = service.call(head.map(|()| body)).await;
    let response = response.unwrap_or_else(|never| match never {});
    let (parts, body) = response.into_parts();
    let length = parts.headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok());
    let left_out = length.and_then(|length| length.parse().ok());
    let body = body.collect().await.unwrap_or_else(|never| match never {}).to_bytes();
    let mut response = head_of(&parts);
    let response = match left_out {
        Some(length) => response.body(OfHead(length)),
        None => response.body(body),
    };
    Ok(ServiceResponse::new(request, response))
}

/// Returns the request without its body, or `None` if the two releases of `http` disagree about what
/// a method, a path or the value of a header is.
fn head_of_request(request: &HttpRequest) -> Option<Request<()>> {
    let mut head = Request::new(());
    *head.method_mut() = Method::from_bytes(request.method().as_str().as_bytes()).ok()?;
    *head.uri_mut() = request.uri().to_string().parse().ok()?;
    (*head.headers_mut(), *head.extensions_mut()) = parts_of(request)?;
    Some(head)
}

/// The body of a response to `HEAD`: only its length.
struct OfHead(u64);

impl MessageBody for OfHead {
    type Error = Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.0)
    }

    fn poll_next(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Infallible>>> {
        Poll::Ready(None)
    }
}

/// The body of a request, read before the call, because actix's payload is bound to its thread. It is
/// wiped when it is dropped: a form may hold a token.
///
/// Of a body that is too large, only so much is kept that the service sees that.
pub(in crate::http) struct ReadBody(Option<Result<Bytes, BoxError>>);

impl ReadBody {
    async fn of(payload: Payload) -> Self {
        let mut stream = pin!(BodyStream::new(payload));
        let (mut kept, mut length) = (Zeroizing::new(Vec::new()), 0_usize);
        while let Some(read) = poll_fn(|context| stream.as_mut().poll_next(context)).await {
            let data = match read {
                Ok(data) => data,
                Err(error) => return Self(Some(Err(error.to_string().into()))),
            };
            length = length.saturating_add(data.len());
            // One byte more than fits shows the service that the body is too large. Room for all
            // of it is made at once, so that the buffer does not grow and leave a copy behind.
            let room = MAX_BODY.saturating_add(1).saturating_sub(kept.len());
            kept.reserve_exact(room);
            kept.extend(data.iter().take(room));
            if length > MOST_DROPPED {
                break;
            }
        }
        Self((!kept.is_empty()).then(|| Ok(Bytes::from_owner(kept))))
    }
}

impl http_body::Body for ReadBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.take().map(|read| read.map(Frame::data)))
    }
}
