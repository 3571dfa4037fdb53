use axum::Router;
use axum::http::{Method, Uri};
use axum::routing::{get, post};
use kiln_model::api::ErrorCode;

use super::error::Refused;
use super::{Api, calls, events, logs};

pub(super) fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/ping", get(calls::ping))
        .route("/v1/status", get(calls::status))
        .route("/v1/plan", post(calls::plan))
        .route("/v1/apply", post(calls::apply))
        .route("/v1/rollback", post(calls::roll_back))
        .route("/v1/down", post(calls::take_down))
        .route("/v1/history", get(calls::history))
        .route("/v1/events", get(events::events))
        .route("/v1/logs", get(logs::logs))
        .route("/v1/verify", get(calls::verify))
        .route("/v1/shutdown", post(calls::shut_down))
        .fallback(unknown)
        .method_not_allowed_fallback(unknown)
        .with_state(api)
}

async fn unknown(method: Method, uri: Uri) -> Refused {
    let path = uri.path();
    Refused::new(
        ErrorCode::NotFound,
        format!(
            "{method} {path} is nothing that this kiln knows: is the command line of another version?"
        ),
    )
}
