//! The page: by HTTP as a browser sends it, and in Chromium.

mod accelerators;
mod chromium;
mod forms;
mod http;
mod looks;
mod own;
mod person;
mod sessions;
mod sign_in;
