package simulation

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	kafkago "github.com/segmentio/kafka-go"

	sinkskafka "lethe/sinks/kafka"
)

// sessionTimeout is longer than any member of a group may be silent.
const sessionTimeout = 15 * time.Second

// expire does what the fake broker leaves undone: it starts no session timer for a member whose connection broke while it
// waited for the answer to JoinGroup, so that the partitions given to it stay with it until the next rebalance. A real
// broker starts the timer of every member when it answers. Such a member's process was killed, or has joined again since.
func (s *simulation) expire(ctx context.Context) {
	client := s.admin.Client()
	for _, r := range s.replicas {
		group := sinkskafka.GroupName("lethe", r.db.name)
		members := s.members(ctx, group)
		seen := make(map[string]time.Time, len(members))
		newest := map[string]time.Time{} // by process
		count := map[string]int{}        // of those
		for _, m := range members {
			first, known := r.members[m.MemberID]
			if !known {
				first = time.Now()
			}
			seen[m.MemberID] = first
			switch at := newest[m.ClientID]; {
			case first.After(at):
				newest[m.ClientID], count[m.ClientID] = first, 1
			case first.Equal(at):
				count[m.ClientID]++ // which of them lives cannot be told: it will join again
			}
		}
		r.members = seen
		for _, m := range members {
			at := newest[m.ClientID]
			double := seen[m.MemberID].Before(at) || count[m.ClientID] > 1
			if double && time.Since(at) >= sessionTimeout || s.deadSince(m.ClientID, sessionTimeout) {
				s.tracef("group %s: a member of %s expires", group, m.ClientID)
				// An error needs no care: the next round says the same.
				_, _ = client.LeaveGroup(ctx, &kafkago.LeaveGroupRequest{
					Addr: client.Addr, GroupID: group, Members: []kafkago.LeaveGroupRequestMember{{ID: m.MemberID}},
				})
			}
		}
	}
}

// members returns who is in a group; nobody, if that cannot be learned now.
func (s *simulation) members(ctx context.Context, group string) []kafkago.DescribeGroupsResponseMember {
	client := s.admin.Client()
	res, err := client.DescribeGroups(ctx, &kafkago.DescribeGroupsRequest{Addr: client.Addr, GroupIDs: []string{group}})
	if err != nil || len(res.Groups) != 1 || res.Groups[0].Error != nil {
		return nil
	}
	return res.Groups[0].Members
}

// owners tells who has a partition, as the broker sees it.
func (s *simulation) owners(ctx context.Context, group string, partition int) string {
	var has, in []string
	for _, m := range s.members(ctx, group) {
		in = append(in, m.ClientID)
		for _, t := range m.MemberAssignments.Topics {
			if slices.Contains(t.Partitions, partition) {
				has = append(has, m.ClientID)
			}
		}
	}
	return fmt.Sprintf("it belongs to [%s] of [%s]", strings.Join(has, " "), strings.Join(in, " "))
}

// deadSince reports whether a process was killed at least so long ago.
func (s *simulation) deadSince(name string, d time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.processes {
		if p.name == name {
			killed := p.killed.Load()
			return killed != 0 && time.Since(time.Unix(0, killed)) >= d
		}
	}
	return false
}
