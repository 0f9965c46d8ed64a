-- A sample of a CRM like Stover: contacts, deals and posts on social media; nothing of Postrider in it.
CREATE SCHEMA IF NOT EXISTS crm;
CREATE SEQUENCE IF NOT EXISTS crm.ids START 1001;

CREATE TABLE IF NOT EXISTS crm.users (id text PRIMARY KEY, name text NOT NULL);

CREATE TABLE IF NOT EXISTS crm.companies (
  id         text PRIMARY KEY DEFAULT 'comp_' || nextval('crm.ids'),
  name       text NOT NULL,
  website    text,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.contacts (
  id         text PRIMARY KEY DEFAULT 'con_' || nextval('crm.ids'),
  company_id text REFERENCES crm.companies,
  first_name text NOT NULL,
  last_name  text NOT NULL,
  email      text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.deals (
  id         text PRIMARY KEY DEFAULT 'deal_' || nextval('crm.ids'),
  title      text NOT NULL,
  value      numeric NOT NULL,
  stage      text NOT NULL DEFAULT 'lead' CHECK (stage IN ('lead', 'proposal', 'negotiation', 'won', 'lost')),
  contact_id text NOT NULL REFERENCES crm.contacts,
  created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.posts (
  id           text PRIMARY KEY DEFAULT 'post_' || nextval('crm.ids'),
  platform     text NOT NULL CHECK (platform IN ('linkedin', 'instagram', 'x')),
  text         text NOT NULL,
  status       text NOT NULL DEFAULT 'draft' CHECK (status IN ('draft', 'scheduled', 'published', 'failed')),
  scheduled_at timestamptz,
  error        text,
  created_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS crm.attributions (
  id         text PRIMARY KEY DEFAULT 'attr_' || nextval('crm.ids'),
  contact_id text NOT NULL REFERENCES crm.contacts,
  source     text NOT NULL,
  campaign   text,
  tracked_at timestamptz NOT NULL DEFAULT now()
);

CREATE INDEX IF NOT EXISTS deals_contact ON crm.deals (contact_id);
CREATE INDEX IF NOT EXISTS attributions_contact ON crm.attributions (contact_id);

INSERT INTO crm.users VALUES ('usr_1', 'Ida Stover'), ('usr_2', 'Paul Reed') ON CONFLICT DO NOTHING;

DO $$ BEGIN
  IF NOT EXISTS (SELECT FROM crm.contacts) THEN
    INSERT INTO crm.companies (id, name, website) VALUES ('comp_1', 'Nordlicht GmbH', 'https://nordlicht.example');
    INSERT INTO crm.contacts (id, company_id, first_name, last_name, email) VALUES
      ('con_1', 'comp_1', 'Mira', 'Lind', 'mira@nordlicht.example'), ('con_2', NULL, 'Raj', 'Patel', 'raj@patel.example');
    INSERT INTO crm.deals (id, title, value, stage, contact_id) VALUES
      ('deal_1', 'Nordlicht rollout', 12000, 'proposal', 'con_1');
    INSERT INTO crm.posts (platform, text) VALUES ('linkedin', 'We are hiring!');
  END IF;
END $$;

CREATE OR REPLACE FUNCTION crm.one_of(VARIADIC choices text[]) RETURNS text LANGUAGE sql VOLATILE AS $$
  SELECT choices[1 + floor(random() * cardinality(choices))::integer]
$$;

-- One thing that a user does. Rows are picked with SKIP LOCKED, so that sessions never wait for each other, and
-- a row is locked before another refers to it, so that nobody deletes it meanwhile.
CREATE OR REPLACE FUNCTION crm.act() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  action  text := crm.one_of('edit companies', 'edit contacts', 'edit deals', 'move deals', 'move deals', 'move posts',
                             'move posts', 'drop contacts', 'drop deals', 'add companies', 'add contacts',
                             'add contacts', 'add deals', 'add deals', 'add posts', 'add attributions',
                             'add attributions');
  thing   text := split_part(action, ' ', 2);
  full_up boolean;
  target  text;
  outcome text;
  contact crm.contacts;
  first   text := crm.one_of('Mira', 'Raj', 'Elif', 'Marc', 'Sofia');
  last    text := crm.one_of('Lind', 'Patel', 'Kaya', 'Dupont', 'Rossi');
BEGIN
  PERFORM set_config('crm.user_id', (SELECT id FROM crm.users ORDER BY random() LIMIT 1), true);
  -- What makes no event when it goes is cleaned up now and then, so that the sample stays small.
  IF random() < 0.05 THEN
    DELETE FROM crm.attributions WHERE id IN (
      SELECT id FROM crm.attributions ORDER BY tracked_at DESC OFFSET 100 FOR UPDATE SKIP LOCKED);
    DELETE FROM crm.posts WHERE id IN (
      SELECT id FROM crm.posts ORDER BY created_at DESC OFFSET 100 FOR UPDATE SKIP LOCKED);
    SELECT id INTO target FROM crm.companies ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED;
    DELETE FROM crm.companies
      WHERE id = target AND NOT EXISTS (SELECT FROM crm.contacts WHERE company_id = target);
  END IF;
  -- A full table gets nothing new.
  EXECUTE format('SELECT count(*) > 100 FROM crm.%I', thing) INTO full_up;
  IF full_up AND thing IN ('companies', 'contacts', 'deals') THEN
    action := CASE thing WHEN 'companies' THEN 'edit' ELSE crm.one_of('edit', 'drop', 'drop') END || ' ' || thing;
  END IF;

  EXECUTE format('SELECT id FROM crm.%I ORDER BY random() LIMIT 1 FOR UPDATE SKIP LOCKED', thing) INTO target;
  CASE action
    WHEN 'edit companies' THEN
      UPDATE crm.companies SET
          website = 'https://' || crm.one_of('www', 'go', 'shop') || '.' || lower(last) || '.example'
        WHERE id = target;
    WHEN 'edit contacts' THEN
      UPDATE crm.contacts SET
          email = lower(first_name || '.' || last_name) || '@' || crm.one_of('mail', 'work') || '.example'
        WHERE id = target;
    WHEN 'edit deals' THEN
      UPDATE crm.deals SET value = value + 500 WHERE id = target AND stage NOT IN ('won', 'lost');
    WHEN 'move deals' THEN
      UPDATE crm.deals SET stage = CASE stage WHEN 'lead' THEN 'proposal' WHEN 'proposal' THEN 'negotiation'
                                              ELSE crm.one_of('won', 'won', 'lost') END
        WHERE id = target AND stage NOT IN ('won', 'lost');
    WHEN 'drop deals' THEN DELETE FROM crm.deals WHERE id = target;
    WHEN 'drop contacts' THEN
      -- The row is locked, so what refers to it now is all there can be.
      DELETE FROM crm.attributions WHERE contact_id = target
        AND NOT EXISTS (SELECT FROM crm.deals WHERE contact_id = target);
      DELETE FROM crm.contacts WHERE id = target
        AND NOT EXISTS (SELECT FROM crm.deals WHERE contact_id = target);
    WHEN 'move posts' THEN
      -- One statement, so that a failure says why in the same event.
      outcome := crm.one_of('published', 'published', 'failed');
      UPDATE crm.posts SET
          status = CASE status WHEN 'scheduled' THEN outcome ELSE 'scheduled' END,
          scheduled_at = CASE status WHEN 'scheduled' THEN scheduled_at ELSE now() + interval '2 hours' END,
          error = CASE WHEN status = 'scheduled' AND outcome = 'failed' THEN 'The platform refused the post' END
        WHERE id = target AND status <> 'published';
    ELSE PERFORM WHERE false;
  END CASE;
  IF FOUND OR full_up THEN
    RETURN;
  END IF;

  -- Add something; also where there was nothing to change.
  SELECT * INTO contact FROM crm.contacts ORDER BY random() LIMIT 1 FOR KEY SHARE SKIP LOCKED;
  IF thing = 'companies' THEN
    INSERT INTO crm.companies (name, website) VALUES (last || ' Inc.', 'https://' || lower(last) || '.example');
  ELSIF thing = 'posts' THEN
    outcome := crm.one_of('draft', 'scheduled');
    INSERT INTO crm.posts (platform, text, status, scheduled_at)
      VALUES (crm.one_of('linkedin', 'instagram', 'x'),
              crm.one_of('We are hiring!', 'Meet us at the fair', 'New release'), outcome,
              CASE outcome WHEN 'scheduled' THEN now() + interval '1 day' END);
  ELSIF thing = 'contacts' OR contact.id IS NULL THEN
    SELECT id INTO target FROM crm.companies ORDER BY random() LIMIT 1 FOR KEY SHARE SKIP LOCKED;
    INSERT INTO crm.contacts (company_id, first_name, last_name, email)
      VALUES (target, first, last, lower(first) || '@' || lower(last) || '.example');
  ELSIF thing = 'deals' THEN
    INSERT INTO crm.deals (title, value, contact_id)
      VALUES (contact.last_name || ' ' || crm.one_of('rollout', 'renewal', 'pilot'),
              1000 * (1 + floor(random() * 40)), contact.id);
  ELSE
    INSERT INTO crm.attributions (contact_id, source, campaign)
      VALUES (contact.id, crm.one_of('newsletter', 'linkedin', 'search'), crm.one_of('january', 'spring', 'launch'));
  END IF;
END $$;
