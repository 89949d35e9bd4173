//! The federation of `docker-compose.yml`, as containers on a network of their own, and what README.md says to do with it.

mod disturbed;
mod federation;
mod readme;
