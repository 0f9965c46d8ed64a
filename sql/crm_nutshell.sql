-- A sample of a CRM like Nutshell: leads, people and companies, and who owns them; nothing of Postrider in it.
CREATE SCHEMA IF NOT EXISTS crm;
CREATE SEQUENCE IF NOT EXISTS crm.ids START 1001;

-- Where people reach this CRM.
CREATE OR REPLACE FUNCTION crm.app_url(path text) RETURNS text LANGUAGE sql IMMUTABLE AS
  $$ SELECT 'https://crm.example' || path $$;

CREATE TABLE IF NOT EXISTS crm.users (
  id            text PRIMARY KEY,
  name          text NOT NULL,
  first_name    text NOT NULL,
  email         text NOT NULL,
  initials      text NOT NULL,
  administrator boolean NOT NULL DEFAULT false,
  modified_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.teams (
  id      text NOT NULL,
  user_id text NOT NULL REFERENCES crm.users,
  PRIMARY KEY (id, user_id)
);

CREATE TABLE IF NOT EXISTS crm.accounts (
  id         text PRIMARY KEY DEFAULT nextval('crm.ids') || '-accounts',
  name       text NOT NULL,
  url        text,
  owner_id   text NOT NULL REFERENCES crm.users,
  deleted_at timestamptz
);

CREATE TABLE IF NOT EXISTS crm.contacts (
  id         text PRIMARY KEY DEFAULT nextval('crm.ids') || '-contacts',
  account_id text REFERENCES crm.accounts,
  first_name text NOT NULL,
  last_name  text NOT NULL,
  full_name  text GENERATED ALWAYS AS (first_name || ' ' || last_name) STORED,
  email      text NOT NULL,
  owner_id   text NOT NULL REFERENCES crm.users,
  deleted_at timestamptz
);

CREATE TABLE IF NOT EXISTS crm.leads (
  id          text PRIMARY KEY DEFAULT nextval('crm.ids') || '-leads',
  number      text NOT NULL DEFAULT nextval('crm.ids')::text,
  name        text NOT NULL,
  description text NOT NULL,
  amount      integer NOT NULL DEFAULT 0,
  confidence  integer NOT NULL DEFAULT 10,
  status      text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'won', 'lost')),
  stage_id    text NOT NULL DEFAULT '5-stages',
  contact_id  text REFERENCES crm.contacts,
  owner_id    text NOT NULL REFERENCES crm.users,
  creator_id  text NOT NULL REFERENCES crm.users,
  created_at  timestamptz NOT NULL DEFAULT now(),
  closed_at   timestamptz,
  path        text GENERATED ALWAYS AS ('/lead/' || number) STORED
);

-- The addresses that a user may send from.
CREATE TABLE IF NOT EXISTS crm.senders (
  id      text PRIMARY KEY,
  user_id text NOT NULL REFERENCES crm.users,
  email   text NOT NULL
);

-- What the samples of earlier releases lack.
ALTER TABLE crm.users
  ADD COLUMN IF NOT EXISTS enabled            boolean NOT NULL DEFAULT true,
  ADD COLUMN IF NOT EXISTS viewing_restricted boolean NOT NULL DEFAULT false,
  ADD COLUMN IF NOT EXISTS emails             text[] GENERATED ALWAYS AS (ARRAY[email]) STORED,
  ADD COLUMN IF NOT EXISTS email_signature    text NOT NULL DEFAULT E'Regards\n',
  ADD COLUMN IF NOT EXISTS phonecaller_type   text NOT NULL DEFAULT 'clicktocall',
  ADD COLUMN IF NOT EXISTS avatar_url         text GENERATED ALWAYS AS (crm.app_url('/avatar/users/' || id)) STORED;
ALTER TABLE crm.contacts
  ADD COLUMN IF NOT EXISTS emails text[] GENERATED ALWAYS AS (ARRAY[email]) STORED;
ALTER TABLE crm.leads
  ADD COLUMN IF NOT EXISTS web_url    text GENERATED ALWAYS AS (crm.app_url('/lead/' || number)) STORED,
  ADD COLUMN IF NOT EXISTS rest_url   text GENERATED ALWAYS AS (crm.app_url('/rest/leads/' || id)) STORED,
  ADD COLUMN IF NOT EXISTS avatar_url text
    GENERATED ALWAYS AS (crm.app_url('/include/images/lead-pies/103.png')) STORED;

CREATE INDEX IF NOT EXISTS contacts_account ON crm.contacts (account_id);
CREATE INDEX IF NOT EXISTS leads_contact ON crm.leads (contact_id);

INSERT INTO crm.users (id, name, first_name, email, initials, administrator) VALUES
  ('1-users', 'Ada Brandt', 'Ada', 'ada@example.com', 'AB', true),
  ('2-users', 'Ines Castro', 'Ines', 'ines@example.com', 'IC', false)
ON CONFLICT DO NOTHING;
INSERT INTO crm.teams VALUES ('3-teams', '1-users'), ('7-teams', '1-users'), ('7-teams', '2-users')
ON CONFLICT DO NOTHING;
INSERT INTO crm.senders VALUES ('1', '1-users', 'bob@example.com'), ('2', '2-users', 'ines@example.com'),
  ('3', '2-users', 'sales@example.com') ON CONFLICT DO NOTHING;

CREATE OR REPLACE FUNCTION crm.pick(VARIADIC choices text[]) RETURNS text LANGUAGE sql VOLATILE AS
  'SELECT choices[1 + floor(random() * cardinality(choices))::integer]';

-- Does one thing that a user does. Rows that another session is changing are passed over.
CREATE OR REPLACE FUNCTION crm.act() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  -- Above some size users add nothing, so that the sample stays small however long it runs.
  what  CONSTANT float := random() * CASE WHEN (SELECT count(*) FROM crm.leads) < 300 THEN 1 ELSE 0.58 END;
  me    CONSTANT text := crm.pick('1-users', '2-users');
  first CONSTANT text := crm.pick('Ada', 'Bruno', 'Chen', 'Dalia', 'Emre', 'Femi', 'Greta');
  last  CONSTANT text := crm.pick('Abbott', 'Brandt', 'Castro', 'Dubois', 'Eriksen', 'Fischer');
  found_id text;
BEGIN
  PERFORM set_config('crm.user_id', me, true);
  IF what < 0.3 THEN
    -- A lead gets on, or ends.
    SELECT id INTO found_id FROM crm.leads WHERE status = 'open' ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
    UPDATE crm.leads SET confidence = least(confidence + 20, 100),
        status = CASE WHEN confidence >= 70 THEN crm.pick('won', 'lost') ELSE 'open' END,
        closed_at = CASE WHEN confidence >= 70 THEN now() END
      WHERE id = found_id;
  ELSIF what < 0.36 THEN
    SELECT id INTO found_id FROM crm.leads WHERE status <> 'open' ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
    DELETE FROM crm.leads WHERE id = found_id;
  ELSIF what < 0.46 THEN
    SELECT id INTO found_id FROM crm.contacts WHERE deleted_at IS NULL
      ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
    UPDATE crm.contacts SET last_name = last WHERE id = found_id;
  ELSIF what < 0.52 THEN
    SELECT id INTO found_id FROM crm.accounts WHERE deleted_at IS NULL
      ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
    UPDATE crm.accounts SET name = last || ' Holding' WHERE id = found_id;
  ELSIF what < 0.56 THEN
    -- People and companies are put away, not deleted.
    SELECT id INTO found_id FROM crm.contacts WHERE deleted_at IS NULL
      ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
    UPDATE crm.contacts SET deleted_at = now() WHERE id = found_id;
  ELSIF what < 0.58 THEN
    SELECT id INTO found_id FROM crm.accounts WHERE deleted_at IS NULL
      ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
    UPDATE crm.accounts SET deleted_at = now() WHERE id = found_id;
  ELSIF what < 0.66 THEN
    INSERT INTO crm.accounts (name, url, owner_id)
      VALUES (last || ' Inc.', 'https://' || lower(last) || '.example', me);
  ELSIF what < 0.78 THEN
    INSERT INTO crm.contacts (account_id, first_name, last_name, email, owner_id)
      VALUES ((SELECT id FROM crm.accounts WHERE deleted_at IS NULL ORDER BY random() LIMIT 1), first, last,
              lower(first || '.' || last) || '@example.com', me);
  END IF;
  IF what >= 0.78 OR NOT FOUND AND what >= 0.58 OR NOT EXISTS (SELECT FROM crm.leads) THEN
    INSERT INTO crm.leads (name, description, amount, contact_id, owner_id, creator_id)
      VALUES ('Lead of ' || last, 'Wants ' || crm.pick('a demo', 'an offer', 'a pilot'),
              100 * (1 + floor(random() * 90)),
              (SELECT id FROM crm.contacts ORDER BY random() LIMIT 1), crm.pick('1-users', '2-users'), me);
  END IF;
END
$$;
