//! The federation of `docker-compose.yml`, as containers on a network of their own, and what README.md says to do with it.

mod disturbed;
mod federation;
mod readme;

// One after the other: there is one federation at a time, and who waits for another one keeps a thread from the other tests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_federation_in_containers() {
    readme::what_it_says_of_separate_hosts_is_so().await;
    disturbed::nodes_come_and_go_while_people_talk().await;
}
