//! The server of this service, as tonic's code generator makes it:
//!
//! ```proto
//! service Who { rpc Am(google.protobuf.Empty) returns (google.protobuf.StringValue); }
//! ```
//!
//! It is written by hand, so that the example needs no `protoc`.

use http::{Request, Response};
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic_prost::ProstCodec;
use tower::{Service, service_fn};

#[derive(Clone)]
pub(crate) struct WhoServer;

impl NamedService for WhoServer {
    const NAME: &'static str = "acme.Who";
}

impl Service<Request<Body>> for WhoServer {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(async move {
            if request.uri().path() != "/acme.Who/Am" {
                return Ok(Status::unimplemented("").into_http());
            }
            let mut grpc = Grpc::new(ProstCodec::<String, ()>::default());
            Ok(grpc.unary(service_fn(super::whoami), request).await)
        })
    }
}
