//! The page that Prometheus scrapes.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{StatusCode, Uri};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::shell::metrics::Metrics;

use super::reply::Failed;

pub(super) fn router(metrics: Arc<Metrics>) -> Router {
    Router::new()
        .route("/metrics", get(page))
        .fallback(|uri: Uri| async move {
            let error = format!("there is nothing at {}: the page is /metrics", uri.path());
            Failed::new(StatusCode::NOT_FOUND, error)
        })
        .with_state(metrics)
}

async fn page(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
}
