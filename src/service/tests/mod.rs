//! What is refused changes nothing: for every rule, a request that it refuses reaches a node as its ports hand it on, and every
//! table is afterwards as it was. What is wrong with each is one thing; that the same without it is accepted is for the tests of
//! the layers below and the system tests.

mod accounts;
mod commits;
mod contexts;
mod groups;
mod hub;
mod joins;
mod keys;
mod lanes;
mod messages;
mod peers;
mod proposals;
mod queues;
mod removals;
mod roots;
mod state;
