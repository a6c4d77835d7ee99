//! The page: by HTTP as a browser sends it, and in Chromium.

mod chromium;
mod http;
mod own;
mod sessions;
