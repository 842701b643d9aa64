use super::*;

fn registry() -> Registry {
    Registry::new(Capacity::new(2, "10.0.0.0/8".parse().unwrap(), 1_000))
}

fn connection(number: u64) -> Connection {
    Connection::new(number, "192.0.2.1:4711".parse().unwrap())
}

fn opened(registry: &Registry, number: u64) -> Connection {
    let connection = connection(number);
    registry.admit(&connection);
    connection
}

#[test]
fn a_websocket_carries_its_session_until_it_ends_and_no_other_takes_its_place() {
    let (registry, sid) = (registry(), Sid::new());
    let (one, two, three) = (
        opened(&registry, 1),
        opened(&registry, 2),
        opened(&registry, 3),
    );
    let carries = |registry: &Registry| registry.upgraded(sid).map(|it| it.number());
    assert!(registry.upgrade(&one, sid) && registry.upgrade(&one, sid));
    assert!(!registry.upgrade(&three, sid));
    registry.ended(&three);
    assert_eq!(carries(&registry), Some(1));
    registry.ended(&one);
    assert_eq!(carries(&registry), None);
    registry.upgrade(&two, sid);
    assert_eq!(carries(&registry), Some(2));
    registry.change_role(&two, Role::Http);
    assert_eq!(carries(&registry), None);
    registry.upgrade(&two, sid);
    registry.ended(&two);
    assert_eq!(carries(&registry), None);
    // A connection that has ended carries no session any more.
    registry.upgrade(&two, sid);
    assert_eq!(carries(&registry), None);
    assert!(registry.all().is_empty());
}

#[test]
fn websockets_without_a_socket_that_was_let_in_are_unwatched() {
    let registry = registry();
    let connections: Vec<_> = (0..6).map(|number| opened(&registry, number)).collect();
    let [begun, polled, probed, stranger] = [Sid::new(), Sid::new(), Sid::new(), Sid::new()];
    registry.change_role(&connections[0], Role::Websocket);
    registry.watch(begun, 1, Some(0));
    registry.change_role(&connections[1], Role::Websocket);
    registry.upgrade(&connections[2], polled);
    registry.watch(polled, 2, None);
    registry.upgrade(&connections[3], stranger);
    registry.watch(probed, 3, None);
    let probing = vec![
        (probed, connections[4].clone()),
        (Sid::new(), connections[5].clone()),
    ];
    let unwatched = registry.unwatched(probing);
    let mut unwatched: Vec<_> = unwatched.iter().map(Connection::number).collect();
    unwatched.sort_unstable();
    assert_eq!(unwatched, [1, 3, 5]);
}

#[test]
fn only_its_own_session_forgets_a_socket() {
    let (registry, sid) = (registry(), Sid::new());
    registry.watch(sid, 1, None);
    registry.watch(sid, 2, None);
    registry.forget(sid, 1);
    assert_eq!(registry.is_closed(sid), Some(false));
    registry.forget(sid, 2);
    assert_eq!(registry.is_closed(sid), None);
}

#[test]
fn a_closed_socket_gives_up_its_poll_once_and_stays_closed() {
    let (registry, sid) = (registry(), Sid::new());
    let poll = opened(&registry, 1);
    registry.begin_poll(sid, &poll);
    assert!(registry.close(sid).0.is_none(), "nobody was let in");
    registry.watch(sid, 1, None);
    registry.begin_poll(sid, &poll);
    assert_eq!(registry.is_closed(sid), Some(false));
    let (closed, _) = registry.close(sid);
    assert_eq!(closed.map(|connection| connection.number()), Some(1));
    assert_eq!(registry.is_closed(sid), Some(true));
    assert!(registry.close(sid).0.is_none());
}

#[test]
fn what_a_peer_took_is_the_sum_of_its_polls_and_its_websocket() {
    let (registry, sid) = (registry(), Sid::new());
    let (poll, websocket) = (opened(&registry, 1), opened(&registry, 2));
    registry.watch(sid, 1, None);
    registry.begin_poll(sid, &poll);
    registry.end_poll(sid, 30);
    registry.end_poll(sid, 4);
    assert_eq!(registry.taken(sid, None), 34);
    registry.upgrade(&websocket, sid);
    websocket.note_write(true, 500);
    assert_eq!(registry.taken(sid, None), 534);
    assert_eq!(registry.taken(Sid::new(), Some(&websocket)), 500);
}

#[test]
fn connections_that_carry_a_socket_make_room_for_others_of_their_address() {
    let (registry, sid) = (registry(), Sid::new());
    let (websocket, poll) = (opened(&registry, 1), opened(&registry, 2));
    registry.upgrade(&websocket, sid);
    registry.begin_answer(2);
    let refused = registry.admit(&connection(3));
    // The websocket's session has no socket that was let in.
    assert!(matches!(refused, Admitted::InPlaceOf(Some(longest), _) if longest.number() == 1));
    registry.begin_answer(3);
    let refused = registry.admit(&connection(4));
    assert!(matches!(refused, Admitted::Refused(Lack::OfAddress)));
    registry.watch(sid, 1, None);
    registry.begin_poll(sid, &poll);
    let next = connection(5);
    assert!(matches!(registry.admit(&next), Admitted::Welcome));
    registry.begin_answer(5);
    let another = Sid::new();
    registry.watch(another, 1, None);
    registry.upgrade(&next, another);
    let last = connection(6);
    assert!(matches!(registry.admit(&last), Admitted::Welcome));
}
