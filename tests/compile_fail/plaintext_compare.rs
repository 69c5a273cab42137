fn is_same(one: &patkit::PlaintextToken, other: &patkit::PlaintextToken) -> bool {
    *one == *other
}

fn main() {}
