//! The server under test.

use axum::{Router, routing::get};

/// Returns a site that answers with its name.
pub fn app(name: &str) -> Router {
    let greeting = format!("hello from {name}");
    Router::new().route("/", get(|| async { greeting }))
}
