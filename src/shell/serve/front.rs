//! One connection's service: gRPC's calls and REST's, told apart by what a request says it carries.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;

use axum::Router;
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, Version};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;

use super::activity::Activity;
use super::reply::Failed;
use super::{App, grpc};

/// Whether a request comes from this box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Local(pub bool);

/// What a listener's connections are served by.
#[derive(Clone)]
pub(super) struct Front {
    pub rest: Option<TowerToHyperService<Router>>,
    pub grpc: Option<Calls>,
}

/// What gRPC's calls are answered from.
#[derive(Clone)]
pub(super) struct Calls {
    pub app: Arc<App>,
    /// Streams take no further request once it is cancelled.
    pub stop: CancellationToken,
}

impl Front {
    /// One that speaks REST alone.
    pub fn rest(router: Router) -> Self {
        Self { rest: Some(TowerToHyperService::new(router)), grpc: None }
    }

    /// What serves one connection, to its end by `stop`.
    pub fn of(&self, local: bool, activity: Arc<Activity>, stop: CancellationToken) -> Served {
        Served { front: self.clone(), local: Local(local), activity, stop }
    }
}

/// The service of one connection.
pub(super) struct Served {
    front: Front,
    local: Local,
    activity: Arc<Activity>,
    stop: CancellationToken,
}

type Answering = Pin<Box<dyn Future<Output = Result<Response, Infallible>> + Send>>;

impl Service<hyper::Request<Incoming>> for Served {
    type Response = Response;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Answering {
        let under = self.activity.begin();
        let local = self.local;
        if let Some(calls) = self.front.grpc.clone().filter(|_| carries_grpc(request.headers())) {
            let answer = grpc::call(calls, local, request);
            return Box::pin(async move { Ok(under.watch(answer.await)) });
        }
        let Some(rest) = &self.front.rest else {
            return Box::pin(async move { Ok(under.watch(not_grpc())) });
        };
        request.extensions_mut().insert(local);
        let (stop, version) = (self.stop.clone(), request.version());
        let answer = rest.call(request);
        Box::pin(async move {
            let mut answer = answer.await?;
            // Over HTTP/1 a client must know before it sends the next one; HTTP/2 has frames for that.
            if stop.is_cancelled() && version < Version::HTTP_2 {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(under.watch(answer))
        })
    }
}

fn carries_grpc(headers: &HeaderMap) -> bool {
    let content = headers.get(CONTENT_TYPE).map(|content| content.as_bytes());
    content.and_then(|content| content.strip_prefix(b"application/grpc")).is_some_and(|rest| {
        matches!(rest.first(), None | Some(b';')) || rest.starts_with(b"+proto")
    })
}

/// gRPC asks for this code where a request is none of its.
fn not_grpc() -> Response {
    let error = "this port speaks gRPC: expected the content-type application/grpc";
    Failed::new(axum::http::StatusCode::UNSUPPORTED_MEDIA_TYPE, error).into_response()
}
