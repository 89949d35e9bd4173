//! System tests: one module per topic. Each test opens with what it shows, what counts as failure and what does not.
