-- What Lethe asks of the CRM's owner: a DELETE of a consent must say whose it was.
alter table consent alter column consent_id set not null;
create unique index consent_identity on consent (consent_id, customer_id, purpose_code, channel_code, contact_id);
alter table consent replica identity using index consent_identity;
