//! What is refused changes nothing: for every rule, a request that it refuses reaches a node as its ports hand it on, and every
//! table is afterwards as it was. Accepted ones are the business of the system tests.

mod messages;
