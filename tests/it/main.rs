//! The test binary: each case is a module.
