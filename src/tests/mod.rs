//! Tests of the house itself: who imports whom, and that rules, code and documentation keep in step.

mod conformance;
pub(crate) mod forged;
mod layers;
mod model;
mod refusals;
mod rules;
mod source;
mod start;
mod switched_off;
mod unit_tests;
