//! Ordered bytes on disk.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]
