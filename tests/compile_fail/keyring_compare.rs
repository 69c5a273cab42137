fn is_same(one: &patkit::Keyring, other: &patkit::Keyring) -> bool {
    *one == *other
}

fn main() {}
