fn copy(keys: &patkit::Keyring) -> patkit::Keyring {
    Clone::clone(keys)
}

fn main() {}
