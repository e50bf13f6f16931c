//! The checker: reads what a run left behind, and judges it. It knows the tables, and nothing of the program that wrote them.

pub(crate) mod history;
pub(crate) mod judge;
pub(crate) mod read;
