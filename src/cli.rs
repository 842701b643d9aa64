//! The commands beside `serve`, and what only they need.

pub mod dev;
pub mod doctor;
pub mod health;
pub mod publisher;
