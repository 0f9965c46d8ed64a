-- A sample of a CRM like NodeStash: several workspaces in one database, and nothing of Postrider in it.
CREATE SCHEMA IF NOT EXISTS crm;
CREATE SEQUENCE IF NOT EXISTS crm.ids START 1001;

CREATE TABLE IF NOT EXISTS crm.users (
  id           text PRIMARY KEY,
  workspace_id text NOT NULL,
  name         text NOT NULL
);

CREATE TABLE IF NOT EXISTS crm.companies (
  id           text PRIMARY KEY DEFAULT 'co_' || nextval('crm.ids'),
  workspace_id text NOT NULL,
  name         text NOT NULL,
  domain       text,
  industry     text,
  created_at   timestamptz NOT NULL DEFAULT now(),
  updated_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.contacts (
  id           text PRIMARY KEY DEFAULT 'ct_' || nextval('crm.ids'),
  workspace_id text NOT NULL,
  company_id   text REFERENCES crm.companies,
  first_name   text NOT NULL,
  last_name    text NOT NULL,
  email        text NOT NULL,
  phone        text,
  created_at   timestamptz NOT NULL DEFAULT now(),
  updated_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.deals (
  id           text PRIMARY KEY DEFAULT 'dl_' || nextval('crm.ids'),
  workspace_id text NOT NULL,
  company_id   text NOT NULL REFERENCES crm.companies,
  title        text NOT NULL,
  stage_id     text NOT NULL DEFAULT 'ps_lead'
    CHECK (stage_id IN ('ps_lead', 'ps_proposal', 'ps_negotiation', 'ps_won', 'ps_lost')),
  closed_at    timestamptz
);

CREATE TABLE IF NOT EXISTS crm.activities (
  id           text PRIMARY KEY DEFAULT 'ac_' || nextval('crm.ids'),
  workspace_id text NOT NULL,
  kind         text NOT NULL CHECK (kind IN ('call', 'email', 'meeting')),
  subject      text NOT NULL,
  deal_id      text REFERENCES crm.deals,
  contact_id   text REFERENCES crm.contacts,
  due_at       timestamptz,
  completed_at timestamptz
);

CREATE INDEX IF NOT EXISTS contacts_company ON crm.contacts (company_id);
CREATE INDEX IF NOT EXISTS deals_company ON crm.deals (company_id);
CREATE INDEX IF NOT EXISTS activities_deal ON crm.activities (deal_id);
CREATE INDEX IF NOT EXISTS activities_contact ON crm.activities (contact_id);

INSERT INTO crm.users VALUES
  ('us_anna', 'ws_north', 'Anna Lindqvist'), ('us_ben', 'ws_north', 'Ben Okafor'),
  ('us_carla', 'ws_south', 'Carla Reyes')
ON CONFLICT DO NOTHING;

DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM crm.companies) THEN
    INSERT INTO crm.companies (id, workspace_id, name, domain, industry) VALUES
      ('co_1', 'ws_north', 'Nordlicht', 'nordlicht.example', 'Software'),
      ('co_2', 'ws_north', 'Fjord Freight', 'fjord.example', 'Logistics'),
      ('co_3', 'ws_south', 'Sol Energy', 'sol.example', 'Energy');
    INSERT INTO crm.contacts (id, workspace_id, company_id, first_name, last_name, email, phone) VALUES
      ('ct_1', 'ws_north', 'co_1', 'Mira', 'Lind', 'mira@nordlicht.example', '+15550100'),
      ('ct_2', 'ws_north', 'co_2', 'Nils', 'Berg', 'nils@fjord.example', NULL),
      ('ct_3', 'ws_south', 'co_3', 'Lucia', 'Vega', 'lucia@sol.example', '+15550101');
    INSERT INTO crm.deals (id, workspace_id, company_id, title, stage_id) VALUES
      ('dl_1', 'ws_north', 'co_1', 'Nordlicht, yearly service', 'ps_negotiation'),
      ('dl_2', 'ws_south', 'co_3', 'Sol Energy Renewal', 'ps_lead');
    INSERT INTO crm.activities (workspace_id, kind, subject, deal_id, contact_id, due_at) VALUES
      ('ws_north', 'call', 'Call about the license', 'dl_1', 'ct_1', now() + interval '1 day');
  END IF;
END $$;

CREATE OR REPLACE FUNCTION crm.one_of(VARIADIC choices text[]) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT choices[1 + floor(random() * cardinality(choices))::integer]
$$;

-- One thing that a user does. Rows are picked with SKIP LOCKED, so that sessions never wait for each other, and
-- a row is locked before another refers to it, so that nobody deletes it meanwhile.
CREATE OR REPLACE FUNCTION crm.act() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  me      crm.users;
  action  text;
  target  text;
  company crm.companies;
  contact crm.contacts;
  first   text := crm.one_of('Mira', 'Nils', 'Lucia', 'Omar', 'Mei', 'Tom');
  last    text := crm.one_of('Lind', 'Berg', 'Vega', 'Haddad', 'Chen', 'Walker');
BEGIN
  SELECT * INTO me FROM crm.users ORDER BY random() LIMIT 1;
  PERFORM set_config('crm.user_id', me.id, true);

  -- Above some size users mostly clean up, so that the sample stays small however long it runs.
  IF (SELECT count(*) FROM crm.contacts) + (SELECT count(*) FROM crm.activities) < 400 THEN
    action := crm.one_of('edit company', 'edit contact', 'move deal', 'move deal', 'complete activity',
      'drop company', 'drop contact', 'drop deal', 'drop activity', 'add', 'add', 'add');
  ELSE
    action := crm.one_of('drop company', 'drop contact', 'drop deal', 'drop activity', 'drop activity');
  END IF;

  CASE action
    WHEN 'edit company' THEN
      UPDATE crm.companies SET industry = crm.one_of('Software', 'Logistics', 'Energy', 'Retail'), updated_at = now()
        WHERE id = (SELECT id FROM crm.companies WHERE workspace_id = me.workspace_id
                      ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED);
    WHEN 'edit contact' THEN
      UPDATE crm.contacts SET phone = '+1555' || (1000 + floor(random() * 9000)::integer), updated_at = now()
        WHERE id = (SELECT id FROM crm.contacts WHERE workspace_id = me.workspace_id
                      ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED);
    WHEN 'move deal' THEN
      UPDATE crm.deals SET
          stage_id = CASE stage_id WHEN 'ps_lead' THEN 'ps_proposal' WHEN 'ps_proposal' THEN 'ps_negotiation'
                                   ELSE crm.one_of('ps_won', 'ps_won', 'ps_lost') END,
          closed_at = CASE stage_id WHEN 'ps_negotiation' THEN now() END
        WHERE id = (SELECT id FROM crm.deals WHERE workspace_id = me.workspace_id AND closed_at IS NULL
                      ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED);
    WHEN 'complete activity' THEN
      UPDATE crm.activities SET completed_at = now()
        WHERE id = (SELECT id FROM crm.activities WHERE workspace_id = me.workspace_id AND completed_at IS NULL
                      ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED);
    -- Only what nothing refers to is deleted; once it is locked, a second look finds what came just before.
    WHEN 'drop company' THEN
      SELECT id INTO target FROM crm.companies c WHERE workspace_id = me.workspace_id
        AND NOT EXISTS (SELECT FROM crm.contacts WHERE company_id = c.id)
        AND NOT EXISTS (SELECT FROM crm.deals WHERE company_id = c.id) LIMIT 1 FOR UPDATE SKIP LOCKED;
      DELETE FROM crm.companies WHERE id = target
        AND NOT EXISTS (SELECT FROM crm.contacts WHERE company_id = target)
        AND NOT EXISTS (SELECT FROM crm.deals WHERE company_id = target);
    WHEN 'drop contact' THEN
      SELECT id INTO target FROM crm.contacts c WHERE workspace_id = me.workspace_id
        AND NOT EXISTS (SELECT FROM crm.activities WHERE contact_id = c.id)
        ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
      DELETE FROM crm.contacts WHERE id = target
        AND NOT EXISTS (SELECT FROM crm.activities WHERE contact_id = target);
    WHEN 'drop deal' THEN
      SELECT id INTO target FROM crm.deals d WHERE workspace_id = me.workspace_id
        AND NOT EXISTS (SELECT FROM crm.activities WHERE deal_id = d.id)
        ORDER BY closed_at NULLS LAST LIMIT 1 FOR UPDATE SKIP LOCKED;
      DELETE FROM crm.deals WHERE id = target AND NOT EXISTS (SELECT FROM crm.activities WHERE deal_id = target);
    WHEN 'drop activity' THEN
      DELETE FROM crm.activities
        WHERE id = (SELECT id FROM crm.activities WHERE workspace_id = me.workspace_id
                      ORDER BY completed_at NULLS LAST LIMIT 1 FOR UPDATE SKIP LOCKED);
    ELSE PERFORM WHERE false;
  END CASE;
  IF FOUND THEN
    RETURN;
  END IF;

  -- Add something; also where there was nothing to change.
  action := crm.one_of('company', 'contact', 'contact', 'deal', 'deal', 'activity', 'activity', 'activity');
  SELECT * INTO company FROM crm.companies WHERE workspace_id = me.workspace_id
    ORDER BY random() LIMIT 1 FOR KEY SHARE SKIP LOCKED;
  IF action = 'company' OR company.id IS NULL THEN
    INSERT INTO crm.companies (workspace_id, name, domain, industry)
      VALUES (me.workspace_id, last || ' ' || crm.one_of('Corp', 'Group', 'Labs'), lower(last) || '.example',
              'Software');
  ELSIF action = 'contact' THEN
    INSERT INTO crm.contacts (workspace_id, company_id, first_name, last_name, email, phone)
      VALUES (me.workspace_id, company.id, first, last, lower(first) || '@' || company.domain, '+15550100');
  ELSIF action = 'deal' THEN
    INSERT INTO crm.deals (workspace_id, company_id, title)
      VALUES (me.workspace_id, company.id, company.name || ' ' || crm.one_of('License', 'Renewal', 'Rollout'));
  ELSE
    SELECT id INTO target FROM crm.deals WHERE company_id = company.id AND closed_at IS NULL
      LIMIT 1 FOR KEY SHARE SKIP LOCKED;
    SELECT * INTO contact FROM crm.contacts WHERE company_id = company.id LIMIT 1 FOR KEY SHARE SKIP LOCKED;
    INSERT INTO crm.activities (workspace_id, kind, subject, deal_id, contact_id, due_at)
      VALUES (me.workspace_id, crm.one_of('call', 'email', 'meeting'),
              crm.one_of('About the license', 'Follow up', 'Demo') || ': ' || company.name, target, contact.id,
              now() + interval '1 day');
  END IF;
END $$;
