"""Keys and tokens that say themselves whose they are: by a prefix, a suffix or a fixed shape that their provider documents.

A row is what stands first (`head`), then `least` to `most` characters of a class. Two regular expressions are made of each:
one that finds the place fast (`core`: the head and a few characters), and one that is exact.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# Classes of characters. In the last, a slash or a plus may stand escaped, as some JSON encoders write them.
_W: Final = "[A-Za-z0-9]"
_U: Final = "[A-Za-z0-9_-]"
_H: Final = "[0-9a-f]"
_UP: Final = "[A-Z0-9]"
_LOW: Final = "[a-z0-9]"
_B: Final = r"(?:[A-Za-z0-9+]|\\*/|\\+u002[bBfF]|%2[bBfF])"
_EQ: Final = r"(?:=|\\+u003[dD]|%3[dD]){0,2}"
_S: Final = r"(?:\\*/|\\+u002[fF]|%2[fF])"
_UUID: Final = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_CORE: Final = (
    6  # characters of the body that the core asks for: with the head, rare enough in prose and base64
)
_CORE_OF_MIDDLE: Final = 20  # the heads of those are found in many an attribute's key
_MOST: Final = 512


class Token(NamedTuple):
    """A row of the table."""

    name: str
    head: str
    body: str
    least: int
    most: int = _MOST
    tail: str = ""
    closed: bool = (
        False  # what follows may not be a letter or digit: for shapes that a longer hash begins with
    )
    before: str = (
        ""  # class of what stands before the head, for those that are known by what is in their middle
    )
    back: int = 0  # how many of them
    varies: int = 0  # by how many it may be fewer

    @property
    def core(self) -> str:
        """Matches at every place where `exact` does, and takes the fast engine few states."""
        most = _CORE_OF_MIDDLE if self.back else _CORE
        return f"{self.head}{self.body}{{{min(self.least, most)}}}" if self.least else self.head

    @property
    def exact(self) -> str:
        """Matches the whole token."""
        body = f"{self.body}{{{self.least},{self.most}}}" if self.most else ""
        before = f"{self.before}{{{self.back - self.varies},{self.back}}}" if self.back else ""
        return f"{before}{self.head}{body}{self.tail}" + ("(?![A-Za-z0-9])" if self.closed else "")


def _exactly(name: str, head: str, body: str, count: int, tail: str = "") -> Token:
    return Token(name, head, body, count, count, tail, closed=True)


TOKENS: Final = (
    # clouds
    _exactly("aws_access_key_id", "A(?:KIA|SIA|BIA|CCA)", "[A-Z2-7]", 16),
    Token("aws_session_token", "(?:IQoJb3JpZ2lu|FwoGZXIvYXdz|FQoGZXIvYXdz)", _B, 60, 2000, _EQ),
    Token("aws_bedrock_key", "ABSK", _B, 60, 300, _EQ),
    Token("aws_bedrock_short_key", "bedrock-api-key-YmVkcm9jay", _B, 20, 2000, _EQ),
    _exactly("aws_appsync_key", "da2-", _LOW, 26),
    Token("aws_mws_token", r"amzn\.mws\." + _UUID, "", 0, 0),
    Token("google_api_key", "AIza", _U, 35, 39),
    Token("google_authorized_key", r"AQ\.Ab8", _U, 30, 100),
    Token("google_oauth_token", r"ya29\.", r"[A-Za-z0-9_.-]", 20, 2000),
    Token("google_oauth_secret", "GOCSPX-", _U, 24, 40),
    Token("google_refresh_token", f"1{_S}{_S}0", _U, 30, 200),
    Token("firebase_server_key", f"AAAA{_U}{{7}}:", _U, 100, 200),
    Token("azure_client_secret", "[0-9]Q~", r"[A-Za-z0-9_~.-]", 31, 34, before=r"[A-Za-z0-9_~.-]", back=3),
    Token("azure_ai_key", "JQQJ99", _W, 20, 26, before=_W, back=52),
    Token("azure_devops_token", "AZDO", _W, 4, 4, closed=True, before=_W, back=76),
    Token("alibaba_access_key_id", "LTAI", _W, 17, 26),
    _exactly("tencent_secret_id", "AKID", _W, 32),
    Token("yandex_token", "y[0-4]_A[gQ]", _U, 50, 200),
    _exactly("yandex_api_key", "AQVN", _U, 36),
    Token("digitalocean_token", "d[oor]p?_v1_", _H, 64, 64),
    Token("heroku_token", "HRKU-AA", _U, 40, 80),
    Token("scaleway_access_key", "SCW", _UP, 17, 17, closed=True),
    Token("flyio_token", "(?:FlyV1 )?fm[12][ar]?_", _B, 80, 1000, _EQ),
    Token("netlify_token", "nfp_", _W, 36, 60),
    Token("render_key", "rnd_", _W, 28, 40),
    Token("planetscale_secret", "pscale_(?:tkn|pw|oauth)_", r"[A-Za-z0-9_.=-]", 32, 64),
    Token("neon_key", "napi_", _LOW, 60, 80),
    Token("mongodb_atlas_secret", "mdb_sa_sk_", _U, 30, 60),
    Token("supabase_token", "sb[bp]_", _H, 40, 40, closed=True),
    Token("supabase_secret_key", "sb_secret_", _U, 20, 60),
    Token("cloudflare_origin_key", "v1[.]0-", _H, 24, 24, f"-{_H}{{146}}"),
    Token("pulumi_token", "pul-", _H, 40, 40, closed=True),
    Token("terraform_token", r"\.atlasv1\.", r"[A-Za-z0-9_=-]", 60, 80, before=_W, back=14),
    Token("vault_token", r"hv[sbr]\.", _U, 24, 300),
    Token("doppler_token", r"dp\.(?:pt|st|ct|sa|scim|audit)\.(?:[a-z0-9_-]{2,35}\.)?", _W, 40, 44),
    Token("databricks_token", "dapi", _H, 32, 32, "(?:-[0-9])?", closed=True),
    Token("databricks_secret", "dose", _H, 32, 32, closed=True),
    Token("openshift_token", "sha256~", _U, 43, 43, closed=True),
    Token("tailscale_key", "tskey-(?:auth|api|client|scim|webhook)-", _W, 10, 30, "(?:-[A-Za-z0-9]{16,64})?"),
    Token("age_secret_key", "AGE-SECRET-KEY-1", "[QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L]", 58, 58),
    Token("onepassword_token", "ops_eyJ", r"[A-Za-z0-9+/_=-]", 100, 2000),
    Token(
        "onepassword_secret_key",
        "A3-[A-Z0-9]{6}-(?:[A-Z0-9]{11}|[A-Z0-9]{6}-[A-Z0-9]{5})",
        "(?:-[A-Z0-9]{5})",
        3,
        3,
    ),
    # code hosts and package registries
    Token("github_token", "gh[posru]_", _W, 36, 255),
    Token("github_fine_grained_token", "github_pat_", "[A-Za-z0-9_]", 60, 100),
    Token(
        "gitlab_token", "gl(?:pat|dt|rt|rtr|ptt|cbt|ft|imt|agent|soat|ffct|wt)-", r"[A-Za-z0-9_.-]", 20, 300
    ),
    Token("gitlab_app_secret", "gloas-", _U, 64, 64),
    Token("gitlab_runner_token", "GR1348941", _U, 20, 30),
    Token("bitbucket_app_password", "ATBB", _W, 28, 40),
    Token("atlassian_token", "AT(?:AT|CT)T3xFf", r"[A-Za-z0-9_=-]", 80, 300),
    Token("npm_token", "npm_", _W, 36, 40),
    Token("pypi_token", "pypi-AgE(?:IcHlwaS5vcmc|NdGVzdC5weXBpLm9yZ)", _U, 50, 1000),
    Token("rubygems_key", "rubygems_", _H, 48, 48, closed=True),
    Token("crates_token", "cio", _W, 32, 32, closed=True),
    Token("nuget_key", "oy2", _LOW, 43, 43, closed=True),
    Token("docker_token", "dckr_[op]at_", _U, 27, 64),
    Token("jfrog_key", "AKCp", _W, 60, 90),
    Token("clojars_token", "CLOJARS_", _W, 60, 60),
    Token("sonarqube_token", "sq[upa]_", _H, 40, 40, closed=True),
    Token("circleci_token", "CCI(?:PAT|PRJ)_", "[A-Za-z0-9_]", 40, 80),
    Token("snyk_token", r"snyk_(?:uat|sat)\.", r"[A-Za-z0-9_.-]", 30, 300),
    Token("sourcegraph_token", "sgp_", "[A-Za-z0-9_]", 40, 64),
    Token("prefect_key", "pn[ub]_", _W, 36, 36, closed=True),
    Token("infracost_key", "ico-", _W, 32, 32, closed=True),
    Token("harness_token", r"pat\.[A-Za-z0-9_-]{22}\.[0-9a-f]{24}\.", _W, 20, 20),
    Token("octopus_key", "API-", _UP, 26, 32, closed=True),
    # models and their tools
    Token("openai_project_key", "sk-(?:proj|svcacct|admin|None)-", _U, 32, 300),
    Token("openai_key", "sk-[A-Za-z0-9]{20}T3BlbkFJ", _W, 20, 20),
    Token("anthropic_key", "sk-ant-(?:api|admin|oat|ort|sid)[0-9]{2}-", _U, 24, 200),
    Token("openrouter_key", "sk-or-v1-", _H, 64, 64),
    Token("langfuse_key", "sk-lf-" + _UUID, "", 0, 0),
    Token("helicone_key", "(?:sk|pk)-helicone-", _U, 20, 60),
    Token("cartesia_key", "sk_car_", _U, 20, 60),
    Token("langsmith_key", "lsv2_(?:pt|sk)_", "[0-9a-f_]", 32, 60),
    Token("huggingface_token", "hf_", _W, 30, 40),
    Token("huggingface_org_token", "api_org_", _W, 30, 40),
    Token("groq_key", "gsk_", _W, 40, 60),
    Token("replicate_token", "r8_", _W, 37, 40, closed=True),
    Token("perplexity_key", "pplx-", _W, 40, 60),
    Token("xai_key", "xai-", _W, 60, 100),
    Token("cerebras_key", "csk-", _LOW, 40, 60),
    Token("together_key", "tgp_v1_", _U, 36, 64),
    Token("fireworks_key", "fw_", _W, 22, 30, closed=True),
    Token("nvidia_key", "nvapi-", _U, 50, 80),
    Token("tavily_key", "tvly-(?:dev-|prod-)?", _W, 28, 40),
    Token("pinecone_key", "pcsk_", "[A-Za-z0-9_]", 50, 90),
    Token("voyage_key", "pa-", _U, 43, 43, closed=True),
    Token("jina_key", "jina_", _U, 50, 70),
    Token("firecrawl_key", "fc-", _H, 32, 32, closed=True),
    Token("e2b_key", "e2b_", _H, 40, 40, closed=True),
    Token("browserbase_key", "bb_(?:live|test)_", _U, 24, 40),
    Token("runpod_key", "rpa_", _UP, 30, 60),
    Token("elevenlabs_key", "sk_", _H, 48, 48, closed=True),
    Token("logfire_token", "pylf_v[0-9]_(?:[a-z]{2}_)?", _W, 36, 60),
    Token("wandb_key", "wandb_v1_", "[A-Za-z0-9_]", 60, 100),
    Token("moonshot_key", "sk-kimi-", _W, 40, 100),
    Token("minimax_key", "sk-api-", _U, 40, 200),
    Token("vercel_token", "vc[aikpr]_", _W, 40, 80),
    Token("daytona_key", "dtn_", _H, 64, 64),
    # a bare `sk-`, which many servers of OpenAI's protocol hand out
    Token("sk_key", "sk-", _W, 32, 128),
    # messages
    Token("slack_token", "xox[abeoprs]-", _U, 20, 300),
    Token("slack_config_token", r"xoxe\.xox[bp]-[0-9]-", _U, 100, 300),
    Token("slack_app_token", "xapp-[0-9]-", _U, 40, 200),
    Token("slack_workflow_token", "xwfp-", _U, 40, 200),
    Token("slack_cookie", "xox[cd]-", r"[A-Za-z0-9%+/=_-]", 30, 300),
    Token(
        "slack_webhook",
        rf"hooks\.slack\.com{_S}(?:services|workflows|triggers){_S}",
        rf"(?:[A-Za-z0-9]|{_S})",
        30,
        120,
    ),
    Token("discord_webhook", rf"discord(?:app)?\.com{_S}api{_S}webhooks{_S}[0-9]{{17,20}}{_S}", _U, 60, 80),
    Token("discord_bot_token", r"\.[A-Za-z0-9_-]{6}\.", _U, 27, 40, before=_U, back=26, varies=2),
    Token(
        "teams_webhook", rf"webhook\.office\.com{_S}webhookb2{_S}", rf"(?:[A-Za-z0-9@-]|{_S}|%40)", 60, 250
    ),
    Token("telegram_bot_token", "[0-9]{8,10}:AA", _U, 33, 33, closed=True),
    Token("twilio_key_sid", "SK", _H, 32, 32, closed=True),
    Token("twilio_account_sid", "AC", _H, 32, 32, closed=True),
    Token("sendgrid_key", r"SG\.[A-Za-z0-9_-]{20,24}\.", _U, 39, 50),
    Token("mailgun_key", "key-", _H, 32, 32, closed=True),
    Token("mailgun_sending_key", "-[0-9a-f]{8}-", _H, 8, 8, closed=True, before=_H, back=32),
    Token("mailchimp_key", "-us", "[0-9]", 1, 2, closed=True, before=_H, back=32),
    Token("brevo_key", "xkeysib-", _H, 64, 64, "-[A-Za-z0-9]{16}"),
    Token("brevo_smtp_key", "xsmtpsib-", _H, 64, 64, "-[A-Za-z0-9]{16}"),
    Token("resend_key", "re_[A-Za-z0-9]{8}_", _W, 22, 28, closed=True),
    # work and data
    Token("linear_key", "lin_(?:api|oauth)_", _W, 40, 64),
    Token("notion_token", "ntn_", _W, 40, 50),
    Token("notion_secret", "secret_", _W, 43, 43, closed=True),
    Token("airtable_token", r"pat[A-Za-z0-9]{14}\.", _H, 64, 64),
    Token("asana_token", "[0-9]{1,2}/[0-9]{16}(?:/[0-9]{16})?:", _H, 32, 32),
    Token("figma_token", "fig[dorup]{1,2}_", _U, 40, 60),
    Token("postman_key", "PMAK-[0-9a-f]{24}-", _H, 34, 34),
    Token("hubspot_token", "pat-(?:na|eu|ap)[0-9]-" + _UUID, "", 0, 0),
    Token("contentful_token", "CFPAT-", _U, 43, 43),
    Token("typeform_token", "tfp_", r"[A-Za-z0-9_.=-]", 40, 80),
    Token("dropbox_token", r"sl\.(?:u\.)?", _U, 100, 2000),
    Token("trello_token", "ATTA", _W, 64, 80),
    Token("readme_key", "rdme_", _LOW, 60, 80),
    Token("launchdarkly_key", "(?:sdk|api)-" + _UUID, "", 0, 0),
    Token("posthog_key", "phx_", _W, 43, 60),
    Token("segment_key", "sgp_", _W, 64, 64),
    Token("mapbox_secret_token", r"sk\.eyJ", _U, 60, 200, r"\.[A-Za-z0-9_-]{20,30}"),
    # No more A's than its own: silence and black, in base64, are nothing else.
    Token("twitter_bearer_token", "A{20,22}[B-Za-z0-9%]", r"[A-Za-z0-9%]", 60, 120),
    Token("facebook_token", "EAA[A-Z]", _W, 80, 400),
    # payment and shops
    Token("stripe_key", "[sr]k_(?:live|test|prod)_", _W, 20, 250),
    Token("stripe_webhook_secret", "whsec_", _B, 24, 80, _EQ),
    Token("square_token", "EAAA", r"[A-Za-z0-9_-]", 56, 64, closed=True),
    Token("square_oauth_secret", "sq0(?:atp|csp)-", _U, 22, 50),
    Token("shopify_token", "shp(?:at|ca|pa|ss|ua)_", "[0-9a-fA-F]", 32, 32),
    Token("braintree_token", r"access_token\$(?:production|sandbox)\$", r"[0-9a-z$]", 40, 60),
    Token("plaid_token", "access-(?:sandbox|development|production)-" + _UUID, "", 0, 0),
    Token("razorpay_key", "rzp_(?:live|test)_", _W, 14, 20),
    Token("flutterwave_key", "FLWSECK(?:_TEST)?-", "[A-Za-z0-9]", 30, 40, "(?:-X)?"),
    Token("easypost_key", "EZ[AT]K", _W, 54, 54, closed=True),
    Token("shippo_token", "shippo_(?:live|test)_", _H, 40, 40),
    Token("lob_key", "(?:live|test)_", _H, 35, 35, closed=True),
    Token("duffel_token", "duffel_(?:live|test)_", _U, 43, 43),
    Token("mollie_key", "(?:live|test)_", _W, 30, 30, closed=True),
    # operations
    Token("newrelic_key", "NR(?:AK|JS|II|IQ|SP|RA)-", _UP, 19, 64),
    Token("newrelic_license_key", "NRA", "L", 1, 1, closed=True, before=_H, back=36),
    Token(
        "sentry_dsn", rf":{_S}{_S}[0-9a-f]{{32}}(?::[0-9a-f]{{32}})?@[a-z0-9.-]{{4,80}}{_S}", "[0-9]", 1, 20
    ),
    Token("sentry_token", "sntry[su]_", r"[A-Za-z0-9+/=_-]", 60, 300),
    Token("grafana_token", "gl(?:sa|c)_", r"[A-Za-z0-9+/=_]", 32, 300),
    Token("grafana_api_key", "eyJrIjoi", r"[A-Za-z0-9+/]", 60, 400, "={0,2}"),
    Token("dynatrace_token", r"dt0[a-z][0-9]{2}\.[A-Z2-7]{24}\.", "[A-Z2-7]", 64, 64),
    Token("honeycomb_key", "hc[abx]ik_", _LOW, 58, 64),
    Token("okta_token", "SSWS 00", _U, 40, 40),
    # signed tokens: header and payload are JSON in base64url, and so begin with `{"`
    Token("jwt", "eyJ", _U, 12, 4000, r"\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]{0,}){1,3}"),
)
