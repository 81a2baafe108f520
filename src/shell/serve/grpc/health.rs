//! The health service: how the server or one of its models stands, once or whenever that changes.

use axum::http::StatusCode;
use axum::response::Response;
use tokio::sync::mpsc;
use tokio::time::timeout_at;

use crate::protocol::grpc::proto::grpc::health::v1 as health;
use crate::shell::serve::App;
use crate::shell::serve::front::Calls;
use crate::shell::serve::reply::Failed;
use crate::shell::slot::NotServed;

use super::calls::{Reply, answered, asked, framed, not_here};
use super::messages::Messages;
use super::{Caller, reply};

use health::health_check_response::ServingStatus;

/// A call of the health service; `None` for one of no service that is known.
pub(super) async fn call(
    calls: &Calls,
    caller: Caller,
    name: Option<&str>,
    messages: &mut Messages,
) -> Reply {
    match name {
        Some("Check") => {
            let request: health::HealthCheckRequest = asked(messages).await?;
            of_whom_it_may(caller, &request)?;
            let unknown = || {
                let error = format!("there is no service '{}'", request.service);
                Failed::new(StatusCode::NOT_FOUND, error)
            };
            let status = standing(&calls.app, &request.service).ok_or_else(unknown)?;
            answered(&health::HealthCheckResponse { status: status.into() })
        }
        Some("Watch") => {
            let request: health::HealthCheckRequest = asked(messages).await?;
            Ok(watch(calls.clone(), &of_whom_it_may(caller, &request)?, request.service))
        }
        Some(_) | None => Err(not_here("there is no such call")),
    }
}

/// The server as a whole, by no name or by its service's.
const SERVER: [&str; 2] = ["", "inference.GRPCInferenceService"];

/// The server's health is for everybody, a model's for those who may hear of models.
fn of_whom_it_may(caller: Caller, request: &health::HealthCheckRequest) -> Result<Caller, Failed> {
    if SERVER.contains(&request.service.as_str()) {
        return Ok(caller);
    }
    let Caller { looks, .. } = caller;
    looks.map(|()| Caller { looks: Ok(()), ..caller })
}

/// How the server as a whole stands (no name, or its service's), or a model; `None` where there is none.
fn standing(app: &App, service: &str) -> Option<ServingStatus> {
    let serves = match service {
        server if SERVER.contains(&server) => app.repository.is_ready(),
        model => match app.repository.find(model, None) {
            Ok(_) => true,
            Err(NotServed::Unready { .. }) => false,
            Err(NotServed::UnknownModel { .. } | NotServed::UnknownVersion { .. }) => return None,
        },
    };
    Some(if serves { ServingStatus::SERVING } else { ServingStatus::NOT_SERVING })
}

fn watch(calls: Calls, caller: &Caller, service: String) -> Response {
    let deadline = caller.timeout.and_then(|timeout| caller.begun.checked_add(timeout));
    let (sender, receiver) = mpsc::channel(1);
    let watching = async move {
        let told = tell(&calls, &service, sender);
        let Some(deadline) = deadline else { return told.await };
        timeout_at(deadline.into(), told).await.unwrap_or_else(|_| {
            Err(Failed::new(StatusCode::GATEWAY_TIMEOUT, "the deadline of the watch has passed"))
        })
    };
    reply::streamed(Box::pin(watching), receiver)
}

/// Sends how `service` stands now and whenever that has changed, until the server stops. Changes that come
/// faster than the client reads are told as the last of them.
async fn tell(
    calls: &Calls,
    service: &str,
    answers: mpsc::Sender<Vec<axum::body::Bytes>>,
) -> Result<(), Failed> {
    let mut changes = calls.app.repository.changes();
    let mut last = None;
    loop {
        let stops = calls.stop.is_cancelled();
        changes.borrow_and_update();
        // One that does not know of a model yet may well get it later.
        let now = standing(&calls.app, service).unwrap_or(ServingStatus::SERVICE_UNKNOWN);
        if last.replace(now) != Some(now) {
            let message = framed(&health::HealthCheckResponse { status: now.into() })?;
            if answers.send(vec![message]).await.is_err() {
                return Ok(());
            }
        }
        if stops {
            let error = "the server stops: open the watch again";
            return Err(Failed::unavailable(error, std::time::Duration::from_secs(1)));
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return Ok(()) },
            () = calls.stop.cancelled() => {}
        }
    }
}
