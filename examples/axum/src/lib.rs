//! The server under test.

use axum::{Router, routing::get};

/// A site that says whose it is.
pub fn app(name: &str) -> Router {
    let greeting = format!("hello from {name}");
    Router::new().route("/", get(|| async { greeting }))
}
