package demo

import (
	"context"

	"github.com/jackc/pgx/v5"

	capturekafka "lethe/capture/kafka"
	capturepg "lethe/capture/postgres"
	"lethe/capture/rules"
	"lethe/config"
	"lethe/internal/kafkaconn"
	sinkspg "lethe/sinks/postgres"
)

func (s *stage) setup(ctx context.Context) error {
	conn, err := kafkaconn.New(s.cfg.Kafka, kafkaconn.Options{})
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := (&capturekafka.Topics{Conn: conn}).Setup(ctx); err != nil {
		return err
	}
	needs, err := rules.Needs(&s.cfg.Source)
	if err != nil {
		return err
	}
	o := capturepg.Options{DSN: s.cfg.Source.Postgres.DSN, Slot: "lethe", Publication: "lethe", Needs: map[string]capturepg.TableNeeds{}}
	for t, n := range needs {
		o.Needs[t] = capturepg.TableNeeds{Columns: n.Columns, OldColumns: n.OldColumns, SubjectColumns: n.SubjectColumns, ReadsDelete: n.ReadsDelete}
	}
	if _, _, err := capturepg.Setup(ctx, s.dsn(crm, "postgres"), config.Secret{}, o); err != nil {
		return err
	}
	for i, name := range databases[1:] {
		c, err := pgx.Connect(ctx, s.dsn(i+1, "postgres"))
		if err != nil {
			return err
		}
		defer c.Close(ctx)
		_, err = sinkspg.Setup(ctx, c, sinkspg.SetupOptions{Name: name, Source: "crm", Config: s.cfg.Replicas[name], Digest: s.cfg.Replicas[name].Digest(), RunRole: "lethe"})
		if err != nil {
			return err
		}
	}
	return nil
}
