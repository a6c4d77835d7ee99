//! The routes: paths, wire formats and status codes, by delegating to the service.

pub mod http;
