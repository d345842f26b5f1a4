package demo

import (
	"context"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"

	capturekafka "lethe/capture/kafka"
	capturepg "lethe/capture/postgres"
	"lethe/config"
	"lethe/internal/app"
	"lethe/internal/kafkaconn"
	"lethe/internal/pii"
	sinkspg "lethe/sinks/postgres"
)

// Owners are logins of the databases' owners.
type Owners struct {
	CRM      string
	Replicas map[string]string
}

// ConfigText is the demo's config with its LETHE_DEMO_ values filled in.
func ConfigText(values map[string]string) string {
	return os.Expand(configText, func(name string) string {
		if v, ok := values[name]; ok {
			return v
		}
		return "$" + name // $key, $now and the like are the config's own
	})
}

// Setup makes topics, publication, slot and ledger tables with the owners' logins.
func Setup(ctx context.Context, cfg *config.Config, owners Owners) error {
	conn, err := kafkaconn.New(cfg.Kafka, kafkaconn.Options{})
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := (&capturekafka.Topics{Conn: conn}).Setup(ctx); err != nil {
		return err
	}
	o, err := app.SourceOptions(cfg)
	if err != nil {
		return err
	}
	if _, _, err := capturepg.Setup(ctx, owners.CRM, config.Secret{}, o); err != nil {
		return err
	}
	for name, dsn := range owners.Replicas {
		if err := setupReplica(ctx, cfg, name, dsn); err != nil {
			return err
		}
	}
	return nil
}

func setupReplica(ctx context.Context, cfg *config.Config, name, owner string) error {
	conn, err := pgx.Connect(ctx, owner)
	if err != nil {
		return fmt.Errorf("connecting to replica %s: %w", name, pii.DriverError(err))
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // nothing is in flight
	_, err = sinkspg.Setup(ctx, conn, sinkspg.SetupOptions{
		Name: name, Source: cfg.Name, Config: cfg.Replicas[name], Digest: cfg.Replicas[name].Digest(), RunRole: "lethe",
	})
	return err
}
