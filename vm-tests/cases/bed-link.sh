# Two hosts with a cable in one guest: data flows, and a silent cut is noticed only by its time limit.
# backend: any

make_two_hosts
on_replica nc -l -p 9000 > /tmp/received &
wait_until on_replica sh -c 'ss -ltn | grep -q 9000'
noise 5000000 > /tmp/sent
on_source nc -N 10.9.0.2 9000 < /tmp/sent
wait $!
cmp /tmp/sent /tmp/received
cut_link
if on_source ping -c 1 -W 1 10.9.0.2; then fail "the cable is not cut"; fi
heal_link
on_source ping -c 1 -W 5 10.9.0.2
