//! The routes of the system shared memory extension.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};

use crate::protocol::RegisterRequest;

use super::App;
use super::front::Local;
use super::reply::json;
use super::routes::{Reply, Shared, small};

const ALL: &str = "/v2/systemsharedmemory";
const ONE: &str = "/v2/systemsharedmemory/region/{name}";
const CUDA: &str = "/v2/cudasharedmemory";

pub(super) fn router() -> Router<Arc<App>> {
    Router::new()
        .route(&format!("{ALL}/status"), get(status))
        .route(&format!("{ONE}/status"), get(status))
        .route(&format!("{ALL}/unregister"), post(unregister))
        .route(&format!("{ONE}/unregister"), post(unregister))
        .route(&format!("{ONE}/register"), post(register))
        .route(&format!("{CUDA}/unregister"), post(unregister_cuda))
        .route(&format!("{CUDA}/region/{{name}}/unregister"), post(unregister_cuda))
}

/// The region, where the path names one.
#[derive(serde::Deserialize)]
struct Target {
    name: Option<String>,
}

async fn status(
    State(app): Shared,
    Extension(Local(local)): Extension<Local>,
    Path(target): Path<Target>,
) -> Reply {
    Ok(json(StatusCode::OK, &app.regions(local)?.status(target.name.as_deref())?))
}

async fn register(
    State(app): Shared,
    Extension(Local(local)): Extension<Local>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    let request: RegisterRequest = small(&app, &headers, body).await?;
    app.regions(local)?.register(&name, request)?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

async fn unregister(
    State(app): Shared,
    Extension(Local(local)): Extension<Local>,
    Path(target): Path<Target>,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    // It says nothing, and is read: the next request comes over the same connection.
    let _: serde::de::IgnoredAny = small(&app, &headers, body).await?;
    app.regions(local)?.unregister(target.name.as_deref());
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

/// Clients begin and end by forgetting all regions of either kind, whichever they use. Of CUDA's there is
/// nothing to forget.
async fn unregister_cuda(
    State(app): Shared,
    Extension(Local(local)): Extension<Local>,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    let _: serde::de::IgnoredAny = small(&app, &headers, body).await?;
    app.regions(local)?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}
