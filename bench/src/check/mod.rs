//! x
pub mod zone;
