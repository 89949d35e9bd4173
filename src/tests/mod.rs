//! Tests of the house itself: who imports whom, and that rules, code and documentation keep in step.

mod layers;
mod rules;
mod source;
mod switched_off;
mod unit_tests;
