//! One connection's service: gRPC's calls and REST's, told apart by what a request says it carries, each of
//! them let in by the gate first.

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

use crate::protocol::access::{Call, Door};

use super::activity::Activity;
use super::gate::{Gate, Peer};
use super::reply::Failed;
use super::{App, grpc};

/// Whether a request comes from this box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Local(pub bool);

/// A call of gRPC that is let in.
pub(super) struct Admitted {
    pub local: Local,
    /// Whether its client may hear of models.
    pub looks: Result<(), Failed>,
}

/// What a listener's connections are served by.
#[derive(Clone)]
pub(super) struct Front {
    pub rest: Option<TowerToHyperService<Router>>,
    pub grpc: Option<Calls>,
    pub gate: Arc<Gate>,
    pub door: Door,
}

/// What gRPC's calls are answered from.
#[derive(Clone)]
pub(super) struct Calls {
    pub app: Arc<App>,
    /// Streams take no further request once it is cancelled.
    pub stop: CancellationToken,
}

impl Front {
    /// What serves one connection, to its end by `stop`.
    pub fn of(&self, peer: Peer, activity: Arc<Activity>, stop: CancellationToken) -> Served {
        Served { front: self.clone(), peer, activity, stop }
    }

    /// The call that a path of REST names; the metrics page's port has nothing else.
    fn named(&self, path: &str) -> Call {
        if self.door == Door::Metrics { Call::Page } else { Call::rest(path) }
    }
}

/// The service of one connection.
pub(super) struct Served {
    front: Front,
    peer: Peer,
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
        let Front { rest, grpc, gate, door } = &self.front;
        let (local, path, headers) =
            (Local(self.peer.local), request.uri().path(), request.headers());
        let may = |call| gate.admit((*door, call), &self.peer, headers);
        if let Some(calls) = grpc.clone().filter(|_| carries_grpc(headers)) {
            let call = Call::grpc(path);
            // What health tells of single models is known of models.
            let looks = if call == Call::Health { may(Call::Look) } else { Ok(()) };
            let admitted = may(call).map(|()| Admitted { local, looks });
            let answer = grpc::call(calls, admitted, request);
            return Box::pin(async move { Ok(under.watch(answer.await)) });
        }
        let Some(rest) = rest else {
            return Box::pin(async move { Ok(under.watch(not_grpc())) });
        };
        if let Err(failed) = may(self.front.named(path)) {
            return Box::pin(async move { Ok(under.watch(failed.into_response())) });
        }
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
