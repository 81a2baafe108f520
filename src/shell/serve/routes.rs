//! The table of routes, and the calls that need no more than a look.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::de::DeserializeOwned;

use crate::limits::{REPOSITORY_BODY_BYTES, REPOSITORY_COMMAND_SECS};
use crate::protocol::{
    BatchStats, IndexLine, IndexRequest, InferenceStats, ModelConfig, ModelMetadata, ModelStats,
    ReadyBody, RepositoryRequest, ServerMetadata, StatDuration, StatsBody,
};
use crate::shell::slot::{BatchTimes, CommandError, ModelState, NotServed, Slot};
use crate::units::Version;

use super::front::Local;
use super::reply::{Failed, json};
use super::{App, infer, memory_routes};

pub(super) type Shared = State<Arc<App>>;
pub(super) type Reply = Result<Response, Failed>;

/// Every path under `/v2`.
pub(super) fn router(app: Arc<App>) -> Router {
    let model = Router::new()
        .route("/", get(metadata))
        .route("/ready", get(ready))
        .route("/infer", post(infer_call))
        .route("/stats", get(stats))
        .route("/config", get(config));
    Router::new()
        .route("/v2", get(server_metadata))
        .route("/v2/", get(server_metadata))
        .route("/v2/health/live", get(|| async { Json(serde_json::json!({ "live": true })) }))
        .route("/v2/health/ready", get(server_ready))
        .route("/v2/models/stats", get(all_stats))
        .nest("/v2/models/{model}", model.clone())
        .nest("/v2/models/{model}/versions/{version}", model)
        .route("/v2/repository/index", post(index))
        .route("/v2/repository/models/{model}/load", post(load))
        .route("/v2/repository/models/{model}/unload", post(unload))
        .route("/v2/blochd/status", get(status))
        .merge(memory_routes::router())
        .fallback(unknown_path)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

/// The model, and the version where the path names one.
#[derive(serde::Deserialize)]
struct Target {
    model: String,
    version: Option<String>,
}

impl Target {
    fn version(&self) -> Result<Option<Version>, Failed> {
        self.version.as_ref().map_or(Ok(None), |text| version_of(text))
    }

    fn slot(&self, app: &App) -> Result<Arc<Slot>, Failed> {
        Ok(app.repository.find(&self.model, self.version()?)?)
    }
}

/// The version that a client writes; none at all is the highest one.
pub(super) fn version_of(text: &str) -> Result<Option<Version>, Failed> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.parse().map_err(|_| {
        Failed::bad_request(format!("'{text}' is not a model version: expected a number"))
    })?;
    Ok(Some(Version(number)))
}

async fn server_metadata(State(app): Shared) -> Json<ServerMetadata> {
    Json(ServerMetadata::this(app.shares_memory()))
}

async fn unknown_path(uri: Uri) -> Failed {
    Failed::new(StatusCode::NOT_FOUND, format!("there is nothing at {}", uri.path()))
}

async fn wrong_method(method: axum::http::Method, uri: Uri) -> Failed {
    let error = format!("{method} is not a method of {}", uri.path());
    Failed::new(StatusCode::METHOD_NOT_ALLOWED, error)
}

async fn server_ready(State(app): Shared) -> Response {
    readiness(app.repository.is_ready())
}

fn readiness(ready: bool) -> Response {
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    json(status, &ReadyBody { ready })
}

async fn ready(State(app): Shared, Path(target): Path<Target>) -> Reply {
    match app.repository.find(&target.model, target.version()?) {
        Ok(_) => Ok(readiness(true)),
        Err(NotServed::Unready { .. }) => Ok(readiness(false)),
        Err(error) => Err(error.into()),
    }
}

async fn metadata(State(app): Shared, Path(target): Path<Target>) -> Reply {
    let slot = target.slot(&app)?;
    let versions = match target.version {
        Some(_) => vec![slot.version()],
        None => app.repository.ready_versions(slot.model()),
    };
    let metadata = ModelMetadata::of(slot.model(), &versions, slot.signature());
    Ok(json(StatusCode::OK, &metadata))
}

async fn config(State(app): Shared, Path(target): Path<Target>) -> Reply {
    let slot = target.slot(&app)?;
    let instances = slot.current().instances();
    let config = ModelConfig::of(slot.model(), slot.signature(), instances);
    Ok(json(StatusCode::OK, &config))
}

async fn infer_call(
    State(app): Shared,
    Path(target): Path<Target>,
    Extension(local): Extension<Local>,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    let version = target.version()?;
    infer::infer(&app, (&target.model, version), local, &headers, body).await
}

async fn stats(State(app): Shared, Path(target): Path<Target>) -> Reply {
    Ok(stats_of(&stats_slots(&app, &target.model, target.version()?)?))
}

/// The slots that a call for a model's statistics means: one version, or all that are served.
pub(super) fn stats_slots(
    app: &App,
    model: &str,
    version: Option<Version>,
) -> Result<Vec<Arc<Slot>>, Failed> {
    let slot = app.repository.find(model, version)?;
    if version.is_some() {
        return Ok(vec![slot]);
    }
    let versions = app.repository.ready_versions(model);
    let find = |version| app.repository.find(model, Some(version)).ok();
    Ok(versions.into_iter().filter_map(find).collect())
}

async fn all_stats(State(app): Shared) -> Response {
    stats_of(&app.repository.slots())
}

fn stats_of(slots: &[Arc<Slot>]) -> Response {
    let model_stats = slots.iter().map(|slot| model_stats(slot)).collect();
    json(StatusCode::OK, &StatsBody { model_stats })
}

pub(super) fn model_stats(slot: &Slot) -> ModelStats {
    let totals = slot.totals();
    let time = |count: u64, sum: Duration| StatDuration {
        count,
        ns: u64::try_from(sum.as_nanos()).unwrap_or(u64::MAX),
    };
    let batch = |(requests, times): (usize, BatchTimes)| BatchStats {
        batch_size: requests as u64,
        compute_input: time(times.runs, times.input),
        compute_infer: time(times.runs, times.compute),
        compute_output: time(times.runs, times.output),
    };
    ModelStats {
        name: slot.model().to_owned(),
        version: slot.version().to_string(),
        last_inference: totals.last_ms,
        inference_count: totals.success,
        execution_count: totals.executions,
        inference_stats: InferenceStats {
            success: time(totals.success, totals.request),
            fail: time(totals.failure, totals.failed),
            queue: time(totals.success, totals.queue),
            compute_input: time(totals.success, totals.input),
            compute_infer: time(totals.success, totals.compute),
            compute_output: time(totals.success, totals.output),
            ..InferenceStats::default()
        },
        batch_stats: slot.batches().into_iter().map(batch).collect(),
    }
}

/// Reads a small JSON body; none at all is the default.
pub(super) async fn small<T: DeserializeOwned + Default>(
    app: &App,
    headers: &HeaderMap,
    body: Body,
) -> Result<T, Failed> {
    let (body, _held) = infer::read(app, headers, body, REPOSITORY_BODY_BYTES).await?;
    if body.is_empty() {
        return Ok(T::default());
    }
    let wrong = |error| Failed::bad_request(format!("failed to parse the request JSON: {error}"));
    serde_json::from_slice(&body).map_err(wrong)
}

async fn index(State(app): Shared, headers: HeaderMap, body: Body) -> Reply {
    let request: IndexRequest = small(&app, &headers, body).await?;
    Ok(json(StatusCode::OK, &index_lines(&app, request.ready)))
}

/// The repository's index, or only what is ready of it.
pub(super) fn index_lines(app: &App, ready: bool) -> Vec<IndexLine> {
    let all = app.repository.index().into_iter();
    all.filter(|entry| !ready || entry.state == ModelState::Ready)
        .map(|entry| IndexLine {
            name: entry.model,
            version: entry.version.to_string(),
            state: entry.state.word(),
            reason: entry.reason,
        })
        .collect()
}

async fn load(
    State(app): Shared,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    parameters(&app, &headers, body).await?;
    commanded(app.repository.load(&model)).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

async fn unload(
    State(app): Shared,
    Path(model): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    parameters(&app, &headers, body).await?;
    commanded(app.repository.unload(&model)).await?;
    Ok(json(StatusCode::OK, &serde_json::json!({})))
}

async fn parameters(app: &App, headers: &HeaderMap, body: Body) -> Result<(), Failed> {
    let request: RepositoryRequest = small(app, headers, body).await?;
    unsupported_parameter(request.unsupported())
}

pub(super) fn unsupported_parameter(name: Option<&str>) -> Result<(), Failed> {
    let Some(name) = name else { return Ok(()) };
    let error = format!(
        "the parameter '{name}' is not supported: models and their policies come from the model \
         directory only"
    );
    Err(Failed::bad_request(error))
}

/// Waits for a command's end, within bounds.
pub(super) async fn commanded(
    command: impl Future<Output = Result<(), CommandError>>,
) -> Result<(), Failed> {
    let bound = Duration::from_secs(REPOSITORY_COMMAND_SECS);
    match tokio::time::timeout(bound, command).await {
        Ok(done) => Ok(done?),
        Err(_) => {
            let error = format!("the command is still under way after {REPOSITORY_COMMAND_SECS} s");
            Err(Failed::new(StatusCode::GATEWAY_TIMEOUT, error))
        }
    }
}

async fn status(State(app): Shared) -> Response {
    json(StatusCode::OK, &(app.status)())
}
