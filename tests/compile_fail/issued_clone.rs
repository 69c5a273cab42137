fn copy(issued: &patkit::IssuedToken) -> patkit::IssuedToken {
    Clone::clone(issued)
}

fn main() {}
