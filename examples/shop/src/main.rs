//! The example app as a program of its own.

fn main() -> anyhow::Result<()> {
    atoll_example_shop::run(std::env::args().skip(1))
}
