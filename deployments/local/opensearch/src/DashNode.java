import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.util.ArrayList;
import java.util.Base64;
import java.util.Collection;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.TreeMap;
import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import java.util.function.UnaryOperator;
import org.apache.lucene.analysis.Analyzer;
import org.apache.lucene.analysis.th.ThaiTokenizer;
import org.opensearch.OpenSearchSecurityException;
import org.opensearch.Version;
import org.opensearch.analysis.common.CommonAnalysisModulePlugin;
import org.opensearch.common.logging.LogConfigurator;
import org.opensearch.common.settings.KeyStoreWrapper;
import org.opensearch.common.settings.Settings;
import org.opensearch.common.util.concurrent.ThreadContext;
import org.opensearch.core.common.io.stream.NamedWriteableRegistry;
import org.opensearch.core.rest.RestStatus;
import org.opensearch.env.Environment;
import org.opensearch.index.analysis.AnalyzerProvider;
import org.opensearch.index.analysis.PreBuiltAnalyzerProviderFactory;
import org.opensearch.indices.analysis.AnalysisModule.AnalysisProvider;
import org.opensearch.node.InternalSettingsPreparer;
import org.opensearch.node.Node;
import org.opensearch.plugins.ActionPlugin;
import org.opensearch.plugins.NetworkPlugin;
import org.opensearch.plugins.Plugin;
import org.opensearch.plugins.PluginInfo;
import org.opensearch.rest.BytesRestResponse;
import org.opensearch.rest.RestChannel;
import org.opensearch.rest.RestHandler;
import org.opensearch.rest.RestHeaderDefinition;
import org.opensearch.rest.RestRequest;
import org.opensearch.transport.TransportInterceptor;
import org.opensearch.transport.TransportRequest;
import org.opensearch.transport.TransportRequestHandler;
import org.opensearch.transport.client.node.NodeClient;

/**
 * A real OpenSearch node from the published jars: its modules are on the class path, and one plugin asks for a password.
 *
 * <p>Arguments: HOME_DIR CONFIG_DIR. Environment: DASH_OPENSEARCH_USERNAME, DASH_OPENSEARCH_PASSWORD, and
 * DASH_S3_ENDPOINT, DASH_S3_REGION, DASH_S3_ACCESS_KEY, DASH_S3_SECRET_KEY for snapshots.
 */
public final class DashNode extends Node {
    private static final Map<String, String> MODULES = Map.of(
        "transport-netty4", "org.opensearch.transport.Netty4ModulePlugin",
        "analysis-common", AnalysisPlugin.class.getName(),
        "lang-painless", "org.opensearch.painless.PainlessModulePlugin",
        "mapper-extras", "org.opensearch.index.mapper.MapperExtrasModulePlugin",
        "reindex", "org.opensearch.index.reindex.ReindexModulePlugin",
        "ingest-common", "org.opensearch.ingest.common.IngestCommonModulePlugin",
        "repository-s3", "org.opensearch.repositories.s3.S3RepositoryPlugin",
        "password", PasswordPlugin.class.getName());

    private DashNode(Environment environment, Collection<PluginInfo> plugins) {
        super(environment, plugins, true);
    }

    /**
     * The usual analyzers, without the Thai one where the Java runtime has no rules for Thai.
     *
     * <p>Every analyzer is built for every index, used or not: with that one, a small runtime could make no index at all.
     */
    public static final class AnalysisPlugin extends CommonAnalysisModulePlugin {
        @Override
        public Map<String, AnalysisProvider<AnalyzerProvider<? extends Analyzer>>> getAnalyzers() {
            Map<String, AnalysisProvider<AnalyzerProvider<? extends Analyzer>>> analyzers = new TreeMap<>(super.getAnalyzers());
            analyzers.keySet().removeIf(AnalysisPlugin::cannotBeBuilt);
            return analyzers;
        }

        @Override
        public List<PreBuiltAnalyzerProviderFactory> getPreBuiltAnalyzerProviderFactories() {
            return super.getPreBuiltAnalyzerProviderFactories().stream().filter(one -> !cannotBeBuilt(one.getName())).toList();
        }

        private static boolean cannotBeBuilt(String analyzer) {
            return analyzer.equals("thai") && !ThaiTokenizer.DBBI_AVAILABLE;
        }
    }

    /** HTTP requests need the user's name and password; the node-to-node port serves nobody, as there is one node. */
    public static final class PasswordPlugin extends Plugin implements ActionPlugin, NetworkPlugin {
        private final byte[] expected = ("Basic " + Base64.getEncoder().encodeToString(
            (required("DASH_OPENSEARCH_USERNAME") + ":" + required("DASH_OPENSEARCH_PASSWORD")).getBytes(StandardCharsets.UTF_8)))
            .getBytes(StandardCharsets.UTF_8);

        @Override
        public UnaryOperator<RestHandler> getRestHandlerWrapper(ThreadContext context, Set<RestHeaderDefinition> headers) {
            return handler -> new RestHandler.Wrapper(handler) {
                @Override
                public void handleRequest(RestRequest request, RestChannel channel, NodeClient client) throws Exception {
                    if (admits(request.header("Authorization"))) {
                        super.handleRequest(request, channel, client);
                    } else {
                        channel.sendResponse(unauthorized());
                    }
                }
            };
        }

        /** The comparison takes the same time wherever the first wrong byte is. */
        private boolean admits(String header) {
            return header != null && MessageDigest.isEqual(expected, header.getBytes(StandardCharsets.UTF_8));
        }

        private static BytesRestResponse unauthorized() {
            BytesRestResponse response = new BytesRestResponse(
                RestStatus.UNAUTHORIZED, "application/json", "{\"error\":\"user name and password required\",\"status\":401}");
            response.addHeader("WWW-Authenticate", "Basic realm=\"opensearch\", charset=\"UTF-8\"");
            return response;
        }

        @Override
        public List<TransportInterceptor> getTransportInterceptors(NamedWriteableRegistry registry, ThreadContext context) {
            return List.of(new TransportInterceptor() {
                @Override
                public <T extends TransportRequest> TransportRequestHandler<T> interceptHandler(
                    String action, String executor, boolean forceExecution, TransportRequestHandler<T> handler) {
                    return (request, channel, task) -> {
                        if (!"direct".equals(channel.getChannelType())) {
                            throw new OpenSearchSecurityException("a single node takes no requests from other nodes", RestStatus.FORBIDDEN);
                        }
                        handler.messageReceived(request, channel, task);
                    };
                }
            });
        }
    }

    public static void main(String[] arguments) throws Exception {
        Path home = Path.of(arguments[0]);
        Path config = Path.of(arguments[1]);
        Environment environment = InternalSettingsPreparer.prepareEnvironment(settings(home), Map.of(), config, () -> "dash-1");
        LogConfigurator.registerErrorListener();
        LogConfigurator.setNodeName("dash-1");
        LogConfigurator.configure(environment);

        Collection<PluginInfo> plugins = new ArrayList<>();
        MODULES.forEach((name, main) -> plugins.add(
            new PluginInfo(name, name, Version.CURRENT.toString(), Version.CURRENT, "21", main, List.of(), false)));
        DashNode node = new DashNode(environment, plugins);
        CountDownLatch closed = new CountDownLatch(1);
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            close(node);
            closed.countDown();
        }));
        node.start();
        closed.await();
    }

    private static Settings settings(Path home) throws Exception {
        String endpoint = required("DASH_S3_ENDPOINT");
        KeyStoreWrapper secrets = KeyStoreWrapper.create();  // in memory only, never saved
        secrets.setString("s3.client.default.access_key", required("DASH_S3_ACCESS_KEY").toCharArray());
        secrets.setString("s3.client.default.secret_key", required("DASH_S3_SECRET_KEY").toCharArray());
        Settings.Builder settings = Settings.builder()
            .put("path.home", home.toString())
            .put("s3.client.default.endpoint", endpoint)
            .put("s3.client.default.protocol", endpoint.startsWith("https:") ? "https" : "http")
            .put("s3.client.default.region", required("DASH_S3_REGION"))
            .put("s3.client.default.path_style_access", true);
        return settings.setSecureSettings(secrets).build();
    }

    private static String required(String name) {
        String value = System.getenv(name);
        if (value == null || value.isEmpty()) {
            throw new IllegalStateException(name + " is not set");
        }
        return value;
    }

    private static void close(Node node) {
        try {
            node.close();
            node.awaitClose(20, TimeUnit.SECONDS);
        } catch (Exception error) {
            System.err.println("while closing: " + error);
        }
    }
}
